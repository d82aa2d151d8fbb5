"""Attention of one query a row, in parts of a row's keys that are put together afterwards.

Letters: T rows, HKV key-value heads, G query heads that share one, D features of a head. A part has SPLIT keys whatever the number of rows
and the length of the cache, so a row's bits depend on its own keys alone. Parts past a row's length do nothing, and keys past it are not
read. Scores are in units of log 2, for exp2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from arkfast.kernels.common import launch

INTERPRET: tl.constexpr = tl.constexpr(launch.INTERPRET)


@triton.jit
def product(a, b, acc):
    """acc + a · b with float32 sums; the interpreter's products take float32 alone."""
    if INTERPRET:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit(do_not_specialize=["limit", "parts"])
def decode_attention_parts(
    q, keys, values, lens, out, sums, q_row, q_head, keys_row, keys_head, keys_place, values_row, values_head, values_place,
    scale, limit, parts,
    HKV: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BG: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, SPLIT: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """Program (t, kv, part): the G heads of a group over one part of row t's keys.

    WHOLE, where there is one part: ``out`` is [T, HKV · G · D], the answer. Else ``out`` is [T, HKV · G, parts, D] f32, the unnormalised
    sums, and ``sums`` is [T, HKV · G, parts, 2] f32, the maximum of the scores and the sum of the exponentials.
    """
    t, kv, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    length = tl.load(lens + t).to(tl.int64)
    begin = part * SPLIT
    end = tl.minimum(tl.minimum(length, limit), begin + SPLIT).to(tl.int32)
    g, d = tl.arange(0, BG), tl.arange(0, BD)
    tile = (g < G)[:, None] & (d < D)[None, :]
    head = kv * G + g
    # Where there is one part it has an answer to store even for a row without keys.
    if begin < (begin + 1 if WHOLE else end):
        queries = tl.load(q + t * q_row + head[:, None] * q_head + d[None, :], mask=tile, other=0.0)
        keys += t * keys_row + kv.to(tl.int64) * keys_head
        values += t * values_row + kv.to(tl.int64) * values_head
        most = tl.full([BG], float("-inf"), tl.float32)
        total = tl.zeros([BG], tl.float32)
        acc = tl.zeros([BG, BD], tl.float32)
        for start in range(begin, end, BN):
            n = start + tl.arange(0, BN)
            place = n.to(tl.int64)
            live = n < end
            k = tl.load(keys + place[None, :] * keys_place + d[:, None], mask=live[None, :] & (d < D)[:, None], other=0.0)
            scores = product(queries, k, tl.zeros([BG, BN], tl.float32)) * scale
            scores = tl.where(live[None, :], scores, float("-inf"))
            higher = tl.maximum(most, tl.max(scores, 1))
            shrink = tl.exp2(most - higher)
            p = tl.exp2(scores - higher[:, None])
            v = tl.load(values + place[:, None] * values_place + d[None, :], mask=live[:, None] & (d < D)[None, :], other=0.0)
            total = total * shrink + tl.sum(p, 1)
            acc = product(p.to(v.dtype), v, acc * shrink[:, None])
            most = higher
        if WHOLE:
            answer = acc / tl.where(length > 0, total, 1.0)[:, None]
            answer = tl.where(length > limit, float("nan"), answer)
            to_ptr = out + t * (HKV * G * D) + head[:, None] * D + d[None, :]
            tl.store(to_ptr, answer.to(out.dtype.element_ty), mask=tile)
        else:
            slot = (t * (HKV * G) + head) * parts + part
            tl.store(out + slot[:, None] * D + d[None, :], acc, mask=tile)
            tl.store(sums + slot * 2, most, mask=g < G)
            tl.store(sums + slot * 2 + 1, total, mask=g < G)


@triton.jit(do_not_specialize=["limit", "parts"])
def decode_attention_merge(
    acc, sums, lens, out, limit, parts,
    HQ: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Program (t, head): the parts of ``decode_attention_parts`` that hold keys of row t, put together in order."""
    t = tl.program_id(0).to(tl.int64)
    slot = t * HQ + tl.program_id(1)
    length = tl.load(lens + t).to(tl.int64)
    used = tl.cdiv(tl.maximum(tl.minimum(length, limit), 0).to(tl.int32), SPLIT)
    d = tl.arange(0, BD)
    most = float("-inf")
    total = 0.0
    answer = tl.zeros([BD], tl.float32)
    for part in range(0, used):
        place = slot * parts + part
        here = tl.load(sums + place * 2)
        higher = tl.maximum(most, here)
        shrink, grow = tl.exp2(most - higher), tl.exp2(here - higher)
        total = total * shrink + tl.load(sums + place * 2 + 1) * grow
        answer = answer * shrink + tl.load(acc + place * D + d, mask=d < D, other=0.0) * grow
        most = higher
    answer = answer / tl.where(length > 0, total, 1.0)
    answer = tl.where(length > limit, float("nan"), answer)
    tl.store(out + slot * D + d, answer.to(out.dtype.element_ty), mask=d < D)
