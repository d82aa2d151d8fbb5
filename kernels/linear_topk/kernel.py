"""Triton kernel that scores chosen columns of a linear layer in float32.

Letters: H features, V weight rows, K slots of a program, a power of two.
"""

import triton
import triton.language as tl

NEG_INF: tl.constexpr = tl.constexpr(float("-inf"))


@triton.jit(do_not_specialize=["k"])
def rescore(
    hidden_ptr,
    hidden_row,
    weight_ptr,
    weight_row,
    column_ptr,
    prior_ptr,
    id_ptr,
    value_ptr,
    sorted_id_ptr,
    V,
    k,
    H: tl.constexpr,
    K: tl.constexpr,
    BLOCK_H: tl.constexpr,
    SORT: tl.constexpr,
):
    """value[row, i] = weight[column[row, i]] · hidden[row], products and sums in float32; −inf where the column is outside [0, V) or the
    prior value is −inf. K slots of a row a program; with SORT, K ≥ k and a row's (value, id) come in the order (value down, id up)."""
    parts = tl.cdiv(k, K)
    row = (tl.program_id(0) // parts).to(tl.int64)
    slot = (tl.program_id(0) % parts) * K + tl.arange(0, K)
    column = tl.load(column_ptr + row * k + slot, mask=slot < k, other=-1).to(tl.int64)
    prior = tl.load(prior_ptr + row * k + slot, mask=slot < k, other=NEG_INF)
    there = (column >= 0) & (column < V) & (prior > NEG_INF)
    column = tl.where(there, column, 0)
    sums = tl.zeros((K, BLOCK_H), tl.float32)
    for start in tl.range(0, H, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        x = tl.load(hidden_ptr + row * hidden_row + h, mask=h < H, other=0.0).to(tl.float32)
        # A slot that counts for nothing reads nothing: as zero it cannot make NaN of an infinite x.
        mask = there[:, None] & (h < H)[None, :]
        w = tl.load(weight_ptr + column[:, None] * weight_row + h[None, :], mask=mask, other=0.0).to(tl.float32)
        sums += w * x[None, :]
    value = tl.where(there, tl.sum(sums, 1) + 0.0, NEG_INF)
    if SORT:
        token = tl.load(id_ptr + row * k + slot, mask=slot < k, other=-1)
        bits = value.to(tl.int32, bitcast=True)
        ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        keys = (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - tl.where(there, token, 0x7FFFFFFF)).to(tl.int64)
        keys = tl.topk(keys, K)
        ordered = (keys >> 32).to(tl.int32)
        value = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
        token = 0x7FFFFFFF - (keys & 0x7FFFFFFF).to(tl.int32)
        tl.store(sorted_id_ptr + row * k + slot, tl.where(value == NEG_INF, -1, token), mask=slot < k)
    tl.store(value_ptr + row * k + slot, value, mask=slot < k)
