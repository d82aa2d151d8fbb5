"""Segment sums of scaled rows over entries sorted by id.

Letters: E entries, H features, V rows of the result. An entry is (id, row, factor): ``order[e]`` below T·U is slot ``order[e] % U`` of
position ``order[e] // U``, whose row is ``hidden``'s; from T·U on it is a row of ``extra`` with factor 1. Entries of negative id stand
first and those of ids from V on last; both are passed over, unread.

A run of equal ids shorter than 2·PIECE is summed by one program. A longer one is cut into pieces of PIECE entries, of which the last takes
what remains (fewer than 2·PIECE entries); the pieces' sums are added in their order. The piece that starts at sorted place s is number
s // PIECE of the partial sums: pieces start at least PIECE apart, so no two share a number and those of a run are neighbours.
Programs find their runs in the sorted ids: nothing about the values is known to the host, and every sum has one order.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _sum_entries(
    order, factor, hidden, extra, hidden_stride, extra_stride, first, count, slots, U, c, H,
    EXTRA: tl.constexpr, BE: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Σ factor · row [BH] over the ``count`` sorted entries from ``first`` on, BE entries at a time."""
    acc = tl.zeros((BH,), tl.float32)
    done = count * 0
    while done < count:
        i = done + tl.arange(0, BE)
        entry = tl.load(order + first + i, mask=i < count, other=0).to(tl.int32)  # of fewer than 2³¹: divided in 32 bits
        if EXTRA:
            scored = (i < count) & (entry < slots)
            added = (i < count) & (entry >= slots)
            place = (entry - slots).to(tl.int64)
            row = tl.load(extra + place[:, None] * extra_stride + c[None, :], mask=added[:, None] & (c < H)[None, :], other=0.0)
            acc += tl.sum(row.to(tl.float32), 0)
        else:
            scored = i < count
        f = tl.load(factor + entry, mask=scored, other=0.0).to(tl.float32)
        place = (entry // U).to(tl.int64)
        row = tl.load(hidden + place[:, None] * hidden_stride + c[None, :], mask=scored[:, None] & (c < H)[None, :], other=0.0)
        acc += tl.sum(row.to(tl.float32) * f[:, None], 0)
        done += BE
    return acc


@triton.jit
def _put_row(out, at, acc, c, bound, ADD: tl.constexpr):
    """out[at + c] = acc, or += acc, for c < bound."""
    if ADD:
        acc += tl.load(out + at + c, mask=c < bound, other=0.0).to(tl.float32)
    tl.store(out + at + c, acc.to(out.dtype.element_ty), mask=c < bound)


@triton.jit(do_not_specialize=["slots", "U", "E", "V"])
def weight_grad_runs(
    ids, order, factor, hidden, extra, out, hidden_stride, extra_stride, out_stride, slots, U, E, V, H,
    EXTRA: tl.constexpr, ADD: tl.constexpr, PIECE: tl.constexpr, WINDOW: tl.constexpr, BE: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Rows of the ids whose run starts in this program's WINDOW sorted places and is shorter than 2·PIECE."""
    e = tl.program_id(0) * WINDOW
    stop = tl.minimum(e + WINDOW, E)
    c = tl.program_id(1) * BH + tl.arange(0, BH)
    ahead = tl.arange(0, 2 * PIECE)
    before = tl.load(ids + e - 1, mask=e > 0, other=-1)
    while e < stop:
        row = tl.load(ids + e)
        equal = (tl.load(ids + e + ahead, mask=e + ahead < E, other=-1) == row) & (e + ahead < E)
        run = tl.sum(equal.to(tl.int32), 0)
        # Not this program's: a run that began before the window, a long one, entries that belong to no row.
        mine = tl.where((row == before) | (row < 0) | (row >= V) | (run == 2 * PIECE), 0, run)
        acc = _sum_entries(
            order, factor, hidden, extra, hidden_stride, extra_stride, e, mine, slots, U, c, H, EXTRA, BE, BH
        )  # fmt: skip
        _put_row(out, tl.maximum(row, 0).to(tl.int64) * out_stride, acc, c, tl.where(mine > 0, H, 0), ADD)
        before = row
        e += run


@triton.jit
def _lower_bound(ids, E, value):
    """The first sorted place whose id is not below ``value``."""
    low = E * 0
    high = E + 0
    while low < high:
        middle = low + (high - low) // 2
        below = tl.load(ids + middle) < value
        low = tl.where(below, middle + 1, low)
        high = tl.where(below, high, middle)
    return low


@triton.jit(do_not_specialize=["slots", "U", "E", "V"])
def weight_grad_pieces(
    ids, order, factor, hidden, extra, partial, heads, hidden_stride, extra_stride, slots, U, E, V, H,
    EXTRA: tl.constexpr, PIECE: tl.constexpr, BE: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """The sum of the one piece of a long run that starts in the PIECE sorted places of this program, if there is one.

    ``heads[k]`` is the number of pieces of the run whose first piece is number k, else 0.
    """
    k = tl.program_id(0)
    c = tl.program_id(1) * BH + tl.arange(0, BH)
    # A piece that starts here has at least PIECE entries, so it holds the last of the program's places.
    e = tl.minimum(k * PIECE + PIECE - 1, E - 1)
    row = tl.load(ids + e)
    # Of 2·PIECE equal ids around e, one lies PIECE places away: most programs end with these two loads.
    behind = tl.load(ids + e - PIECE, mask=e >= PIECE, other=-1)
    beyond = tl.load(ids + e + PIECE, mask=e + PIECE < E, other=-1)
    near = tl.where((row >= 0) & (row < V) & ((behind == row) | (beyond == row)), E, 0)
    begin = _lower_bound(ids, near, row)
    end = _lower_bound(ids, near, row + 1)
    pieces = tl.where(end - begin >= 2 * PIECE, (end - begin) // PIECE, 0)
    number = (e - begin) // PIECE
    start = begin + number * PIECE
    count = tl.where(number == pieces - 1, end - start, PIECE)
    # Past the last piece's start the places are its remainder; the last program's places can end before the piece that it sees begins.
    count = tl.where((number < pieces) & (start >= k * PIECE), count, 0)
    acc = _sum_entries(
        order, factor, hidden, extra, hidden_stride, extra_stride, start, count, slots, U, c, H, EXTRA, BE, BH
    )  # fmt: skip
    tl.store(partial + k.to(tl.int64) * H + c, acc, mask=c < tl.where(count > 0, H, 0))
    tl.store(heads + k, tl.where((count > 0) & (number == 0), pieces, 0), mask=tl.program_id(1) == 0)


@triton.jit(do_not_specialize=["E"])
def weight_grad_long_runs(
    ids, partial, heads, out, out_stride, E, H,
    ADD: tl.constexpr, PIECE: tl.constexpr, BE: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """The row of the long run whose first piece is number ``program_id(0)``: its pieces' sums in order."""
    k = tl.program_id(0)
    c = tl.program_id(1) * BH + tl.arange(0, BH)
    pieces = tl.load(heads + k)
    row = tl.load(ids + tl.minimum(k * PIECE + PIECE - 1, E - 1))
    acc = tl.zeros((BH,), tl.float32)
    done = pieces * 0
    while done < pieces:
        i = done + tl.arange(0, BE)
        at = (k + i).to(tl.int64)[:, None] * H + c[None, :]
        acc += tl.sum(tl.load(partial + at, mask=(i < pieces)[:, None] & (c < H)[None, :], other=0.0), 0)
        done += BE
    _put_row(out, tl.maximum(row, 0).to(tl.int64) * out_stride, acc, c, tl.where(pieces > 0, H, 0), ADD)


@triton.jit(do_not_specialize=["slots", "U", "E", "V"])
def weight_grad_atomic(
    ids, factor, hidden, extra, out, hidden_stride, extra_stride, out_stride, slots, U, E, V, H,
    EXTRA: tl.constexpr, BE: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """The same sums by float atomics over unsorted entries: their order, and so the last bits, change from run to run."""
    e = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)
    c = tl.program_id(1) * BH + tl.arange(0, BH)
    row = tl.load(ids + e, mask=e < E, other=-1).to(tl.int64)
    there = (row >= 0) & (row < V)
    scored = there & (e < slots)
    f = tl.load(factor + e, mask=scored, other=0.0).to(tl.float32)
    value = tl.load(hidden + (e // U)[:, None] * hidden_stride + c[None, :], mask=scored[:, None] & (c < H)[None, :], other=0.0)
    value = value.to(tl.float32) * f[:, None]
    if EXTRA:
        added = there & (e >= slots)
        more = tl.load(extra + (e - slots)[:, None] * extra_stride + c[None, :], mask=added[:, None] & (c < H)[None, :], other=0.0)
        value += more.to(tl.float32)
    at = tl.maximum(row, 0)[:, None] * out_stride + c[None, :]
    tl.atomic_add(out + at, value, mask=there[:, None] & (c < H)[None, :])
