"""Normalisation and rotation of a step's queries and keys, and the write into the cache.

Letters: T rows, HQ query heads, HKV key-value heads, D features of a head, L positions of a cache row. Tiles are heads by half a head's
features, because feature d turns with d + D/2.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def turned(a, cos, b, sin, dtype: tl.constexpr):
    """a · cos + b · sin with each product rounded to ``dtype``, as operations on tensors of that dtype round it."""
    return (a * cos).to(dtype).to(tl.float32) + (b * sin).to(dtype).to(tl.float32)


@triton.jit
def scaled(x, factor, weight, dtype: tl.constexpr):
    """weight · (x · factor) with each product rounded to ``dtype``."""
    return (weight * (x * factor).to(dtype).to(tl.float32)).to(dtype).to(tl.float32)


@triton.jit
def turn_heads(
    source, target, target_head, norm, eps, cos, sin, heads, inside,
    D: tl.constexpr, BLOCK: tl.constexpr, BD: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    """``heads`` ≤ BLOCK rows of D features at ``source``, turned, into rows ``target_head`` apart at ``target``; NaN unless ``inside``.

    HAS_NORM: first each of them is divided by its root mean square and multiplied by ``norm`` [D], as ``add_rms_norm`` does.
    """
    HALF: tl.constexpr = D // 2
    dtype: tl.constexpr = target.dtype.element_ty
    h, d = tl.arange(0, BLOCK)[:, None], tl.arange(0, BD)[None, :]
    tile, half = (h < heads) & (d < HALF), d < HALF
    low = tl.load(source + h * D + d, mask=tile, other=0.0).to(tl.float32)
    high = tl.load(source + h * D + HALF + d, mask=tile, other=0.0).to(tl.float32)
    if HAS_NORM:
        factor = tl.rsqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / D + eps)[:, None]
        low = scaled(low, factor, tl.load(norm + d, mask=half, other=0.0).to(tl.float32), dtype)
        high = scaled(high, factor, tl.load(norm + HALF + d, mask=half, other=0.0).to(tl.float32), dtype)
    cos_low, cos_high = tl.load(cos + d, mask=half, other=0.0).to(tl.float32), tl.load(cos + HALF + d, mask=half, other=0.0).to(tl.float32)
    sin_low, sin_high = tl.load(sin + d, mask=half, other=0.0).to(tl.float32), tl.load(sin + HALF + d, mask=half, other=0.0).to(tl.float32)
    target += h.to(tl.int64) * target_head + d
    tl.store(target, tl.where(inside, turned(low, cos_low, -high, sin_low, dtype), float("nan")).to(dtype), mask=tile)
    tl.store(target + HALF, tl.where(inside, turned(high, cos_high, low, sin_high, dtype), float("nan")).to(dtype), mask=tile)


@triton.jit(do_not_specialize=["L"])
def rope_cache_rows(
    q, k, v, q_norm, k_norm, eps, cos, sin, keys, values, positions, out,
    q_stride, k_stride, v_stride, cos_stride, sin_stride,
    keys_row, keys_head, keys_place, values_row, values_head, values_place, L,
    HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, BQ: tl.constexpr, BKV: tl.constexpr, BD: tl.constexpr,
    HAS_NORM: tl.constexpr,
):  # fmt: skip
    """Program (t, 0) turns the queries of row t, program (t, 1) turns its keys and writes them and the values at ``positions[t]``."""
    t = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + t).to(tl.int64)
    # A position outside the cache cannot raise here: nothing is written there, and NaN shows it.
    inside = (position >= 0) & (position < L)
    cos += t * cos_stride
    sin += t * sin_stride
    if tl.program_id(1) == 0:
        turn_heads(q + t * q_stride, out + t * (HQ * D), D, q_norm, eps, cos, sin, HQ, inside, D, BQ, BD, HAS_NORM)
    else:
        place, heads = tl.where(inside, position, 0), tl.where(inside, HKV, 0)
        keys += t * keys_row + place * keys_place
        turn_heads(k + t * k_stride, keys, keys_head, k_norm, eps, cos, sin, heads, inside, D, BKV, BD, HAS_NORM)
        h, d = tl.arange(0, BKV)[:, None], tl.arange(0, 2 * BD)[None, :]
        tile = (h < heads) & (d < D)
        rows = tl.load(v + t * v_stride + h * D + d, mask=tile, other=0.0)
        tl.store(values + t * values_row + place * values_place + h.to(tl.int64) * values_head + d, rows, mask=tile)
