"""Dot products of hidden rows with gathered weight rows, and the hidden gradient.

Letters: T positions, H features, U ids a position. One program has one position, so what it computes does not depend on how many there are.
Slots that are empty (negative ids) or past the weight's V rows read no weight.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["U", "V"])
def gather_linear_scores(
    hidden, weight, ids, scores, hidden_stride, weight_stride, ids_stride, U, V, H,
    BU: tl.constexpr, BH: tl.constexpr, NH: tl.constexpr,
):  # fmt: skip
    """scores[t, u] = weight[ids[t, u]] · hidden[t] for BU slots of a position; 0 where the id is negative, NaN where it is V or more.
    NH = ⌈H / BH⌉."""
    t = tl.program_id(0).to(tl.int64)
    u = tl.program_id(1) * BU + tl.arange(0, BU)
    rows = tl.load(ids + t * ids_stride + u, mask=u < U, other=-1).to(tl.int64)
    known = (rows >= 0) & (rows < V)
    base = tl.maximum(rows, 0) * weight_stride
    score = tl.zeros((BU,), tl.float32)
    for j in range(NH):
        c = j * BH + tl.arange(0, BH)
        h = tl.load(hidden + t * hidden_stride + c, mask=c < H, other=0.0).to(tl.float32)
        w = tl.load(weight + base[:, None] + c[None, :], mask=known[:, None] & (c < H)[None, :], other=0.0).to(tl.float32)
        score += tl.sum(w * h[None, :], 1)
    # Selected, not multiplied by 0: the position's hidden row may hold NaN. An id past the end cannot raise here; NaN shows it.
    tl.store(scores + t * U + u, tl.where(known, score, tl.where(rows < 0, 0.0, float("nan"))), mask=u < U)


@triton.jit(do_not_specialize=["U", "V"])
def gather_linear_hidden_grad(
    grad, scale, weight, ids, d_hidden, weight_stride, ids_stride, U, V, H,
    HAS_SCALE: tl.constexpr, BU: tl.constexpr, NU: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """d_hidden[t] = Σ_u grad[t, u] · weight[ids[t, u]] over ids in [0, V), for BH features of a position. NU = ⌈U / BU⌉.

    HAS_SCALE: times scale[t], and 0 where that is 0, whatever the gradient and the rows hold.
    """
    t = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BH + tl.arange(0, BH)
    slots = U
    if HAS_SCALE:
        factor = tl.load(scale + t)
        slots = tl.where(factor == 0.0, 0, U)
    acc = tl.zeros((BH,), tl.float32)
    for n in range(NU):
        u = n * BU + tl.arange(0, BU)
        rows = tl.load(ids + t * ids_stride + u, mask=u < slots, other=-1).to(tl.int64)
        known = (rows >= 0) & (rows < V)
        g = tl.load(grad + t * U + u, mask=known, other=0.0).to(tl.float32)
        if HAS_SCALE:
            g = tl.where(known, g * factor, 0.0)
        base = tl.maximum(rows, 0) * weight_stride
        w = tl.load(weight + base[:, None] + c[None, :], mask=known[:, None] & (c < H)[None, :], other=0.0).to(tl.float32)
        acc += tl.sum(w * g[:, None], 0)
    tl.store(d_hidden + t * H + c, acc.to(d_hidden.dtype.element_ty), mask=c < H)
