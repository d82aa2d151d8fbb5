"""The rotation of queries and keys, both in one launch.

Letters: T positions, HQ query heads, HK key heads, D features of a head, r pairs of a head that turn. A row is one head at one position.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def turn_rows(
    x, out, cos, sin, x_stride, x_head, cos_stride, sin_stride, first, T, r,
    H: tl.constexpr, D: tl.constexpr, BACK: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Rows ``first`` to ``first`` + BR of x [T, H, D] turned into the contiguous ``out``; BACK: by the angles' negatives."""
    dtype: tl.constexpr = out.dtype.element_ty
    row = first + tl.arange(0, BR)
    # Divided in 32 bits, which the op sees to; offsets are of 64.
    t, h = (row // H).to(tl.int64), row % H
    d, pair = tl.arange(0, BD)[None, :], tl.arange(0, BD // 2)[None, :]
    inside = (row < T * H)[:, None]
    tile, angles = inside & (d < D), inside & (pair < r)
    values = tl.load(x + (t * x_stride + h * x_head)[:, None] + d, mask=tile, other=0.0)
    # Loaded in whole rows, whose neighbours one thread holds, and taken apart in registers.
    even, odd = tl.split(tl.reshape(values, (BR, BD // 2, 2)))
    c = tl.load(cos + (t * cos_stride)[:, None] + pair, mask=angles, other=1.0).to(tl.float32)
    s = tl.load(sin + (t * sin_stride)[:, None] + pair, mask=angles, other=0.0).to(tl.float32)
    if BACK:
        s = -s
    a, b = even.to(tl.float32), odd.to(tl.float32)
    # Products are rounded one by one, as operations on tensors of that dtype round them.
    low = ((a * c).to(dtype).to(tl.float32) - (b * s).to(dtype).to(tl.float32)).to(dtype)
    high = ((b * c).to(dtype).to(tl.float32) + (a * s).to(dtype).to(tl.float32)).to(dtype)
    # Chosen, not turned by nothing: an infinite feature times a sine of 0 would be NaN.
    low, high = tl.where(angles, low, even), tl.where(angles, high, odd)
    tl.store(out + row.to(tl.int64)[:, None] * D + d, tl.reshape(tl.join(low, high), (BR, BD)), mask=tile)


@triton.jit(do_not_specialize=["T"])
def rotary_rows(
    q, k, q_out, k_out, cos, sin, q_stride, q_head, k_stride, k_head, cos_stride, sin_stride, T, r,
    HQ: tl.constexpr, HK: tl.constexpr, D: tl.constexpr, BACK: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Program (n, 0) turns the n-th BR rows of the queries, program (n, 1) those of the keys."""
    first = tl.program_id(0) * BR
    if tl.program_id(1) == 0:
        turn_rows(q, q_out, cos, sin, q_stride, q_head, cos_stride, sin_stride, first, T, r, HQ, D, BACK, BR, BD)
    else:
        turn_rows(k, k_out, cos, sin, k_stride, k_head, cos_stride, sin_stride, first, T, r, HK, D, BACK, BR, BD)
