"""Triton kernels of the log-softmax over one row of logits a program: log-sum-exp, log-probabilities at a few ids, entropy, and dL/dlogits.

Letters: V columns, U ids a row. A row is read in blocks with a running maximum m and a sum of e^(x−m) for each lane, so each logit is
read once and exponentiated once. Rows are on grid axis 0 and their offsets are int64.
"""

import triton
import triton.language as tl

from arkfast.kernels.common.range_kernel import in_ranges

NEG_INF: tl.constexpr = tl.constexpr(float("-inf"))
INF: tl.constexpr = tl.constexpr(float("inf"))


@triton.jit
def load_scores(
    row_ptr, dead_ptr, ranges_ptr, columns, V, inv_tau,
    HAS_DEAD: tl.constexpr, RANGES: tl.constexpr, INSIDE: tl.constexpr,
):  # fmt: skip
    """z/τ of a block of columns in float32, −inf where dead or outside the row's RANGES ranges (0: it has none). INSIDE says that no column
    is past the end, so no mask hinders the load of a row without ranges."""
    if RANGES:
        live = in_ranges(ranges_ptr, columns, RANGES)
        if not INSIDE:
            live = live & (columns < V)
        x = tl.load(row_ptr + columns, mask=live, other=NEG_INF).to(tl.float32) * inv_tau
        if HAS_DEAD:
            x = tl.where(tl.load(dead_ptr + columns, mask=live, other=1) != 0, NEG_INF, x)
    elif INSIDE:
        x = tl.load(row_ptr + columns).to(tl.float32) * inv_tau
        if HAS_DEAD:
            x = tl.where(tl.load(dead_ptr + columns) != 0, NEG_INF, x)
    else:
        x = tl.load(row_ptr + columns, mask=columns < V, other=NEG_INF).to(tl.float32) * inv_tau
        if HAS_DEAD:
            x = tl.where(tl.load(dead_ptr + columns, mask=columns < V, other=1) != 0, NEG_INF, x)
    return x


@triton.jit
def finite_base(m):
    """What to subtract before exponentiating: the maximum, or 0 where that is ±inf."""
    return tl.where((m == NEG_INF) | (m == INF), 0.0, m)


@triton.jit
def online(m, s, e, x, HAS_ENTROPY: tl.constexpr):
    """(m, Σ e^(x−m), Σ e^(x−m)(x−m)), each [lanes], with one more block x [lanes, PART]. Milakov & Gimelshein 2018, with the first moment
    added."""
    top = tl.maximum(m, tl.max(x, 1))
    base = finite_base(top)
    s, e = moved_to(m, s, e, base, HAS_ENTROPY)
    away = x - base[:, None]
    w = tl.exp(away)
    if HAS_ENTROPY:
        e += tl.sum(tl.where(w == 0.0, 0.0, w * away), 1)
    return top, s + tl.sum(w, 1), e


@triton.jit
def moved_to(m, s, e, base, HAS_ENTROPY: tl.constexpr):
    """The sums (Σ e^(x−m), Σ e^(x−m)(x−m)) with ``base`` subtracted in the place of m."""
    # At most 0 even where m is finite and the new maximum is +inf, whose base is 0.
    shrink = tl.exp(tl.minimum(m - base, 0.0))
    if HAS_ENTROPY:
        e = (e + s * tl.where(m == NEG_INF, 0.0, m - base)) * shrink
    return s * shrink, e


@triton.jit(do_not_specialize=["U"])
def row_log_softmax_fwd(
    logits_ptr,
    dead_ptr,
    ranges_ptr,
    ids_ptr,
    logp_ptr,
    lse_ptr,
    entropy_ptr,
    stride,
    V,
    U,
    inv_tau,
    HAS_DEAD: tl.constexpr,
    RANGES: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride
    own_ptr = ranges_ptr
    if RANGES:
        own_ptr = ranges_ptr + row * (2 * RANGES)
    # Columns that a thread loads as 16 bytes are one lane. Each lane has a maximum of its own, so threads meet once a row.
    PART: tl.constexpr = 128 // logits_ptr.dtype.element_ty.primitive_bitwidth
    block = tl.arange(0, BLOCK // PART)[:, None] * PART + tl.arange(0, PART)[None, :]
    m = tl.full([BLOCK // PART], NEG_INF, tl.float32)
    s = tl.zeros([BLOCK // PART], tl.float32)
    e = tl.zeros([BLOCK // PART], tl.float32)
    inside = V // BLOCK * BLOCK
    for start in range(0, inside, BLOCK):
        x = load_scores(row_ptr, dead_ptr, own_ptr, start + block, V, inv_tau, HAS_DEAD, RANGES, True)
        m, s, e = online(m, s, e, x, HAS_ENTROPY)
    if inside < V:
        x = load_scores(row_ptr, dead_ptr, own_ptr, inside + block, V, inv_tau, HAS_DEAD, RANGES, False)
        m, s, e = online(m, s, e, x, HAS_ENTROPY)
    base = finite_base(tl.max(m, 0))
    s, e = moved_to(m, s, e, base, HAS_ENTROPY)
    total = tl.sum(s, 0)
    log_total = tl.log(total)
    lse = base + log_total
    tl.store(lse_ptr + row, lse)
    if HAS_ENTROPY:
        # H = lse − Σ p x = log Σ e^(x−m) − Σ e^(x−m)(x−m) / Σ e^(x−m)
        tl.store(entropy_ptr + row, log_total - tl.sum(e, 0) / total)
    for first in range(0, U, BLOCK_U):
        u = first + tl.arange(0, BLOCK_U)
        ids = tl.load(ids_ptr + row * U + u, mask=u < U, other=-1).to(tl.int64)
        known = (ids >= 0) & (ids < V)
        z = tl.load(row_ptr + ids, mask=known, other=0.0).to(tl.float32) * inv_tau
        if HAS_DEAD:
            z = tl.where(tl.load(dead_ptr + ids, mask=known, other=0) != 0, NEG_INF, z)
        if RANGES:
            z = tl.where(in_ranges(own_ptr, ids, RANGES), z, NEG_INF)
        # An id past the end cannot raise here; NaN shows it. (Not a global: Triton compares globals between launches, and NaN ≠ NaN.)
        logp = tl.where(known, z - lse, tl.where(ids < 0, 0.0, float("nan")))
        tl.store(logp_ptr + row * U + u, logp, mask=u < U)


@triton.jit
def dense_grad(x, lse, share, grad_entropy, entropy, HAS_ENTROPY: tl.constexpr):
    """τ · dL/dz without the entries at ids: share · p − g_H · p (log p + H), share = g_lse − Σ g."""
    logp = x - lse
    p = tl.exp(logp)
    d = share * p
    if HAS_ENTROPY:
        d -= grad_entropy * tl.where(p == 0.0, 0.0, p * (logp + entropy))
    return d


@triton.jit
def row_log_softmax_bwd(
    logits_ptr,
    dead_ptr,
    ranges_ptr,
    lse_ptr,
    share_ptr,
    idle_ptr,
    entropy_ptr,
    grad_entropy_ptr,
    out_ptr,
    stride,
    out_stride,
    V,
    inv_tau,
    HAS_DEAD: tl.constexpr,
    RANGES: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``out`` may be the logits: an element is stored after the value that it comes from was loaded, and is read by nothing else. Rows that
    are idle get zeros whatever their logits are."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride
    own_ptr = ranges_ptr
    if RANGES:
        own_ptr = ranges_ptr + row * (2 * RANGES)
    to_ptr = out_ptr + row * out_stride
    block = tl.arange(0, BLOCK)
    lse = tl.load(lse_ptr + row)
    share = tl.load(share_ptr + row)
    idle = tl.load(idle_ptr + row) != 0
    entropy = 0.0
    grad_entropy = 0.0
    if HAS_ENTROPY:
        entropy = tl.load(entropy_ptr + row)
        grad_entropy = tl.load(grad_entropy_ptr + row)
    inside = V // BLOCK * BLOCK
    for start in range(0, inside, BLOCK):
        columns = start + block
        x = load_scores(row_ptr, dead_ptr, own_ptr, columns, V, inv_tau, HAS_DEAD, RANGES, True)
        d = tl.where(idle, 0.0, dense_grad(x, lse, share, grad_entropy, entropy, HAS_ENTROPY) * inv_tau)
        tl.store(to_ptr + columns, d.to(out_ptr.dtype.element_ty))
    if inside < V:
        columns = inside + block
        x = load_scores(row_ptr, dead_ptr, own_ptr, columns, V, inv_tau, HAS_DEAD, RANGES, False)
        d = tl.where(idle, 0.0, dense_grad(x, lse, share, grad_entropy, entropy, HAS_ENTROPY) * inv_tau)
        tl.store(to_ptr + columns, d.to(out_ptr.dtype.element_ty), mask=columns < V)


@triton.jit(do_not_specialize=["U"])
def row_log_softmax_bwd_ids(
    ids_ptr,
    logp_ptr,
    grad_ptr,
    share_ptr,
    idle_ptr,
    entropy_ptr,
    grad_entropy_ptr,
    out_ptr,
    out_stride,
    V,
    U,
    inv_tau,
    HAS_ENTROPY: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    """Writes the columns at ids, after ``row_log_softmax_bwd``: what stands there plus the sum of the upstream gradients of that id.

    The value is computed anew from log p rather than read, so that slots of one id all store the same bits and need no atomics.
    """
    row = tl.program_id(0).to(tl.int64)
    u = tl.arange(0, BLOCK_U)
    ids = tl.load(ids_ptr + row * U + u, mask=u < U, other=-1).to(tl.int64)
    logp = tl.load(logp_ptr + row * U + u, mask=u < U, other=NEG_INF)
    grad = tl.load(grad_ptr + row * U + u, mask=u < U, other=0.0).to(tl.float32)
    share = tl.load(share_ptr + row)
    idle = tl.load(idle_ptr + row) != 0
    entropy = 0.0
    grad_entropy = 0.0
    if HAS_ENTROPY:
        entropy = tl.load(entropy_ptr + row)
        grad_entropy = tl.load(grad_entropy_ptr + row)
    total = tl.sum(tl.where(ids[:, None] == ids[None, :], grad[None, :], 0.0), 1)
    d = tl.where(idle, 0.0, (dense_grad(logp, 0.0, share, grad_entropy, entropy, HAS_ENTROPY) + total) * inv_tau)
    live = (ids >= 0) & (ids < V) & (logp != NEG_INF)
    tl.store(out_ptr + row * out_stride + ids, d.to(out_ptr.dtype.element_ty), mask=live)
