"""Triton kernels of the exact top-k of rows.

A row's columns are cut into groups of G consecutive positions and supergroups of S groups. ``row_stats`` reads the row once and keeps the
maxima of both; ``row_select`` takes the K best supergroups, of their groups the K best, and of those groups' values the K best.

Why that is exact: order groups by (maximum down, position up). A value outside the K best groups has K groups before its own, and in each a
value that precedes it: a larger one, or an equal one that stands earlier because groups are consecutive. So it is not among the K first.
The same holds for supergroups. There is no list that can overflow. The K-th best of each level is found by halving an
interval of values, each time counting those above its middle: that ends after as many steps as a value has bits, whatever the values are,
and takes a fraction of the comparisons of a sort.

Values that take part: NaN, dead positions and those outside the row's own ranges of positions are −inf, and −0 is +0. A position is a
column's number; with an order, position p stands for column ``order[p]`` and the output id ``id_of[p]``, so that the order of positions is
that of output ids.

Letters: V positions, K a power of two at least the wanted k, RANGES of a row (0: all positions).
"""

import triton
import triton.language as tl

from arkfast.kernels.common import launch
from arkfast.kernels.common.range_kernel import in_ranges

INTERPRET: tl.constexpr = tl.constexpr(launch.INTERPRET)
NEG_INF: tl.constexpr = tl.constexpr(float("-inf"))
POS_INF: tl.constexpr = tl.constexpr(float("inf"))
LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
FLAG_NAN: tl.constexpr = tl.constexpr(1)
FLAG_INF: tl.constexpr = tl.constexpr(2)
FLAG_SHORT: tl.constexpr = tl.constexpr(4)


@triton.jit
def _key(x, position, KIND: tl.constexpr):
    """One integer that orders as (value up, position down): the bits of x, the lower ones flipped where it is negative, above the position.

    ``x`` is float32 without NaN and holds a value of the logits' own type, whose 16 bits suffice for bf16 and fp16: int32 keys cost a ninth
    of int64 ones.
    """
    x = x + 0.0
    if KIND == "fp32":
        bits = x.to(tl.int32, bitcast=True)
        ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - position).to(tl.int64)
    else:
        if KIND == "fp16":
            bits = x.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32)
        else:
            bits = x.to(tl.int32, bitcast=True) >> 16
        ordered = bits ^ ((bits >> 31) & 0x7FFF)
        return (ordered << 16) | (0xFFFF - position)


@triton.jit
def _position(key, KIND: tl.constexpr):
    """The position that ``_key`` packed."""
    if KIND == "fp32":
        return 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32)
    else:
        return 0xFFFF - (key & 0xFFFF)


@triton.jit
def _value(key, KIND: tl.constexpr):
    """The value that ``_key`` packed, as float32."""
    if KIND == "fp32":
        ordered = (key >> 32).to(tl.int32)
        return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    else:
        ordered = key >> 16
        bits = ordered ^ ((ordered >> 31) & 0x7FFF)
        if KIND == "fp16":
            return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        else:
            return (bits << 16).to(tl.float32, bitcast=True)


@triton.jit
def _ordered(x, KIND: tl.constexpr):
    """int32 numbers that order as the float32 ``x`` do, −0 like +0: their bits, the lower ones flipped where x is negative. A value of a
    16-bit type needs its upper 16 bits alone."""
    x = x + 0.0
    if KIND == "fp32":
        bits = x.to(tl.int32, bitcast=True)
        return bits ^ ((bits >> 31) & 0x7FFFFFFF)
    else:
        if KIND == "fp16":
            bits = x.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32)
        else:
            bits = x.to(tl.int32, bitcast=True) >> 16
        return bits ^ ((bits >> 31) & 0x7FFF)


@triton.jit
def _kth(ordered, k, low, high):
    """The k-th largest of ``ordered`` [N], or a number between it and the next smaller one.

    At least k numbers must be at least ``low``, and none above ``high``. The interval is halved at most 16 or 32 times.
    """
    while low < high:
        middle = (low | high) - ((low ^ high) >> 1)  # their mean rounded up, without their sum, which may overflow
        there = tl.sum((ordered >= middle).to(tl.int32), 0)
        low = tl.where(there >= k, middle, low)
        high = tl.where(there > k, high, tl.where(there == k, middle, middle - 1))
    return low


@triton.jit
def _first(ordered, kth, k, scratch_ptr, N: tl.constexpr, K: tl.constexpr):
    """Places in ``ordered`` [N] of the k first in the order (value down, place up), in ascending order: [K], the rest 0.

    Threads hand them to each other through ``scratch_ptr`` [k], which afterwards is free again.
    """
    above = (ordered > kth).to(tl.int32)
    equal = (ordered == kth).to(tl.int32)
    wanted = k - tl.sum(above, 0)  # how many of the equal ones
    up_to_here = tl.cumsum(above | (equal << 16), 0)  # both counts in one scan
    kept = (above > 0) | ((equal > 0) & ((up_to_here >> 16) <= wanted))
    slot = (up_to_here & 0xFFFF) + tl.minimum(up_to_here >> 16, wanted) - 1
    tl.store(scratch_ptr + slot, tl.arange(0, N), mask=kept)
    tl.debug_barrier()
    mine = tl.arange(0, K)
    place = tl.load(scratch_ptr + mine, mask=mine < k, other=0)
    tl.debug_barrier()
    return place


@triton.jit
def _larger_or_nan(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _has_nan(x):
    """Which rows of x [n, m] hold a NaN: int32 [n]. A maximum that lets NaN through costs one instruction a value, a comparison three."""
    if INTERPRET:  # which takes a function of ours value by value
        return tl.max((x != x).to(tl.int32), 1)
    else:
        most = tl.reduce(x, 1, _larger_or_nan)
        return (most != most).to(tl.int32)


@triton.jit
def _without_nan(x):
    """−inf in the place of NaN."""
    return tl.where(x == x, x, NEG_INF)


@triton.jit
def _shift(m):
    """What to subtract before exponentiation: the maximum, or 0 where it is infinite and the difference would be NaN."""
    return tl.where((m == NEG_INF) | (m == POS_INF), 0.0, m)


@triton.jit
def _values_at(
    row_ptr,
    x_col,
    order_ptr,
    dead_ptr,
    ranges_ptr,
    positions,
    inside,
    G: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    HAS_DEAD: tl.constexpr,
    RANGES: tl.constexpr,
):
    """Values that take part, float32, at ``positions`` of one row; −inf where not ``inside``. ``ranges_ptr`` points to the row's own."""
    if RANGES:
        inside = inside & in_ranges(ranges_ptr, positions, RANGES)
    if HAS_ORDER:
        columns = tl.load(order_ptr + positions, mask=inside, other=0)
    else:
        columns = positions
    x = tl.load(row_ptr + columns * x_col, mask=inside, other=NEG_INF).to(tl.float32)
    if HAS_DEAD:
        word = tl.load(dead_ptr + positions // G, mask=inside, other=0)
        x = tl.where(((word >> (positions % G)) & 1) != 0, NEG_INF, x)
    return _without_nan(x)


@triton.jit(do_not_specialize=["count"])
def mark_dead(ids_ptr, count, words_ptr, blocks_ptr, V, BLOCK: tl.constexpr, G: tl.constexpr, N: tl.constexpr):
    """Sets bit id % G of words[id // G], and blocks[id // BLOCK], for every id in [0, V). Order does not matter to a bitwise or."""
    i = tl.program_id(0) * N + tl.arange(0, N)
    token = tl.load(ids_ptr + i, mask=i < count, other=-1).to(tl.int64)
    inside = (token >= 0) & (token < V)
    token = tl.where(inside, token, 0).to(tl.int32)
    one = tl.full((N,), 1, tl.int32)
    tl.atomic_or(words_ptr + token // G, one << (token % G), mask=inside)
    tl.atomic_or(blocks_ptr + token // BLOCK, one, mask=inside)


@triton.jit
def row_stats(
    x_ptr,
    x_row,
    x_col,
    order_ptr,
    dead_ptr,
    dead_blocks_ptr,
    ranges_ptr,
    group_ptr,
    group_row,
    super_ptr,
    super_row,
    max_ptr,
    sum_ptr,
    nan_ptr,
    V,
    splits,
    BLOCK: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    BLOCKS: tl.constexpr,
    HAS_LSE: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    HAS_DEAD: tl.constexpr,
    RANGES: tl.constexpr,
):
    """One part (BLOCKS · BLOCK positions) of one row: maxima of its groups and supergroups, whether it holds a NaN, and the running
    (maximum m, Σ exp(x − m)) of the log-sum-exp. Group buffers are as wide as all parts together, so each element is written."""
    pid = tl.program_id(0)
    row = (pid // splits).to(tl.int64)
    split = pid % splits
    row_ptr = x_ptr + row * x_row
    group = tl.arange(0, BLOCK // G)
    # Columns that a thread loads as 16 bytes: they are looked through for NaN without asking another thread.
    PART: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    bad = tl.zeros((BLOCK // PART,), tl.int32)
    m = tl.full((), NEG_INF, tl.float32)
    s = tl.full((), 0.0, tl.float32)
    # Not unrolled: the loads of later blocks, moved up, would take twice the registers and so halve the warps that hide their latency.
    for j in tl.range(0, BLOCKS):
        block = split * BLOCKS + j
        positions = block * BLOCK + group[:, None] * G + tl.arange(0, G)[None, :]
        inside = positions < V
        if RANGES:
            inside = inside & in_ranges(ranges_ptr + row * (2 * RANGES), positions, RANGES)
        if HAS_ORDER:
            columns = tl.load(order_ptr + positions, mask=inside, other=0)
        else:
            columns = positions
        x = tl.load(row_ptr + columns * x_col, mask=inside, other=NEG_INF).to(tl.float32)
        if HAS_DEAD:  # noqa: SIM102 (the first is known to the compiler, the second is not)
            # Almost every block has nothing blocked in it and is spared the bits.
            if tl.load(dead_blocks_ptr + block) != 0:
                word = tl.load(dead_ptr + block * (BLOCK // G) + group)
                x = tl.where(((word[:, None] >> tl.arange(0, G)[None, :]) & 1) != 0, NEG_INF, x)
        bad |= _has_nan(tl.reshape(x, (BLOCK // PART, PART)))
        best = tl.max(x, 1)  # passes NaN over; of nothing but NaN it is NaN, and ``row_select`` reads that as −inf
        tl.store(group_ptr + row * group_row + block * (BLOCK // G) + group, best)
        best = tl.max(tl.reshape(best, (BLOCK // G // S, S)), 1)
        tl.store(super_ptr + row * super_row + block * (BLOCK // G // S) + tl.arange(0, BLOCK // G // S), best)
        if HAS_LSE:
            before = m
            m = tl.maximum(before, _without_nan(tl.max(best, 0)))
            shift = _shift(m)
            # A sum that holds nothing yet stays 0: its factor may be infinite.
            s = tl.where(before == NEG_INF, 0.0, s * tl.exp2((_shift(before) - shift) * LOG2E))
            # (x − m) first: one fma(x, log2 e, −m·log2 e) overflows beyond 1e30.
            s += tl.sum(tl.sum(tl.where(x == x, tl.exp2((x - shift) * LOG2E), 0.0), 1), 0)
    tl.store(nan_ptr + row * splits + split, tl.max(bad, 0))
    if HAS_LSE:
        tl.store(max_ptr + row * splits + split, m)
        tl.store(sum_ptr + row * splits + split, s)


@triton.jit(do_not_specialize=["k"])
def row_select(
    x_ptr,
    x_row,
    x_col,
    order_ptr,
    id_of_ptr,
    dead_ptr,
    ranges_ptr,
    group_ptr,
    group_row,
    super_ptr,
    super_row,
    max_ptr,
    sum_ptr,
    nan_ptr,
    value_ptr,
    id_ptr,
    lse_ptr,
    flag_ptr,
    V,
    splits,
    k,
    K: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    SUPERS: tl.constexpr,
    SPLITS: tl.constexpr,
    KIND: tl.constexpr,
    HAS_LSE: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    HAS_DEAD: tl.constexpr,
    RANGES: tl.constexpr,
):
    """One row: its k first ids and values, its flags, and the log-sum-exp from its parts. SUPERS ≥ super_row and SPLITS ≥ splits are powers
    of two."""
    row = tl.program_id(0).to(tl.int64)
    value_ptr += row * k
    id_ptr += row * k

    q = tl.arange(0, SUPERS)
    supers = tl.load(super_ptr + row * super_row + q, mask=q < super_row, other=NEG_INF).to(tl.float32)
    ordered = _ordered(_without_nan(supers), KIND)
    # Of K sets each has its largest, so K values at least are no smaller than the smallest of those.
    low = tl.min(tl.max(tl.reshape(ordered, (K, SUPERS // K)), 1), 0)
    high = tl.max(ordered, 0)
    kth = _kth(ordered, k, low, high)
    slot = tl.arange(0, K)
    best_super = tl.where(slot < k, _first(ordered, kth, k, id_ptr, SUPERS, K), super_row)

    # k supergroups have a group that is as large as the last of them, and k groups such a value: the search begins there.
    g = tl.reshape(best_super[:, None] * S + tl.arange(0, S)[None, :], (K * S,))
    groups = tl.load(group_ptr + row * group_row + g, mask=g < group_row, other=NEG_INF).to(tl.float32)
    ordered = _ordered(_without_nan(groups), KIND)
    kth = _kth(ordered, k, kth, high)
    place = _first(ordered, kth, k, id_ptr, K * S, K)
    best_group = tl.where(slot < k, tl.gather(best_super, place // S, 0) * S + place % S, group_row)

    p = tl.reshape(best_group[:, None] * G + tl.arange(0, G)[None, :], (K * G,))
    if RANGES:
        ranges_ptr += row * (2 * RANGES)
    x_ptr += row * x_row
    ordered = _ordered(_values_at(x_ptr, x_col, order_ptr, dead_ptr, ranges_ptr, p, p < V, G, HAS_ORDER, HAS_DEAD, RANGES), KIND)
    kth = _kth(ordered, k, kth, high)
    place = _first(ordered, kth, k, id_ptr, K * G, K)
    position = tl.gather(best_group, place // G, 0) * G + place % G
    inside = (slot < k) & (position < V)
    x = _values_at(x_ptr, x_col, order_ptr, dead_ptr, ranges_ptr, position, inside, G, HAS_ORDER, HAS_DEAD, RANGES)
    keys = tl.sort(_key(x, slot, KIND), descending=True)
    value = _value(keys, KIND)
    position = tl.gather(position, _position(keys, KIND), 0)
    there = value > NEG_INF
    if HAS_ORDER:
        token = tl.load(id_of_ptr + position, mask=there, other=-1)
    else:
        token = position
    token = tl.where(there, token, -1)
    tl.store(value_ptr + slot, value, mask=slot < k)
    tl.store(id_ptr + slot, token, mask=slot < k)

    part = tl.arange(0, SPLITS)
    inside = part < splits
    flags = tl.max(tl.load(nan_ptr + row * splits + part, mask=inside, other=0), 0) * FLAG_NAN
    flags += tl.max((value == POS_INF).to(tl.int32), 0) * FLAG_INF
    flags += tl.max(((slot < k) & (token < 0)).to(tl.int32), 0) * FLAG_SHORT
    tl.store(flag_ptr + row, flags.to(tl.uint8))
    if HAS_LSE:
        m = tl.load(max_ptr + row * splits + part, mask=inside, other=NEG_INF)
        s = tl.load(sum_ptr + row * splits + part, mask=inside, other=0.0)
        top = tl.max(m, 0)
        s = tl.where(m == NEG_INF, 0.0, s * tl.exp2((_shift(m) - _shift(top)) * LOG2E))
        finite = (top != NEG_INF) & (top != POS_INF)
        lse = tl.where(finite, top + tl.log(tl.where(finite, tl.sum(s, 0), 1.0)), top)
        tl.store(lse_ptr + row, lse)


@triton.jit(do_not_specialize=["g"])
def row_gather(
    x_ptr,
    x_row,
    x_col,
    order_ptr,
    dead_ptr,
    ranges_ptr,
    position_ptr,
    position_row,
    position_col,
    out_ptr,
    V,
    g,
    G: tl.constexpr,
    N: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    HAS_DEAD: tl.constexpr,
    RANGES: tl.constexpr,
):
    """out[row, i] = the row's value at positions[row, i], −inf outside [0, V); N of a row's g positions a program."""
    parts = tl.cdiv(g, N)
    row = (tl.program_id(0) // parts).to(tl.int64)
    i = (tl.program_id(0) % parts) * N + tl.arange(0, N)
    position = tl.load(position_ptr + row * position_row + i * position_col, mask=i < g, other=-1).to(tl.int64)
    inside = (position >= 0) & (position < V)
    position = tl.where(inside, position, 0).to(tl.int32)
    if RANGES:
        ranges_ptr += row * (2 * RANGES)
    x = _values_at(x_ptr + row * x_row, x_col, order_ptr, dead_ptr, ranges_ptr, position, inside, G, HAS_ORDER, HAS_DEAD, RANGES)
    tl.store(out_ptr + row * g + i, x + 0.0, mask=i < g)
