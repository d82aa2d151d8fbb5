"""Triton kernel of a full-vocabulary divergence between one row of student and one row of teacher logits a program, with dL/dlogits.

p = softmax(x_T), q = softmax(x_S), x = z/τ, δ = log q − log p. The first pass over both rows gives the log-sum-exps, the next ones the
divergence and the gradient; they read the rows again rather than keep them.
"""

import triton
import triton.language as tl

from arkfast.kernels.log_softmax.kernel import NEG_INF, finite_base, load_scores

FORWARD: tl.constexpr = tl.constexpr(0)
REVERSE: tl.constexpr = tl.constexpr(1)
JSD: tl.constexpr = tl.constexpr(2)


@triton.jit
def exp_remainder(d):
    """e^d − 1 − d for |d| ≤ 1/2 by its series to d⁹/9!, whose relative error there is below 1e-9: the difference itself would cancel."""
    r = 1.0 / 362880.0
    r = r * d + 1.0 / 40320.0
    r = r * d + 1.0 / 5040.0
    r = r * d + 1.0 / 720.0
    r = r * d + 1.0 / 120.0
    r = r * d + 1.0 / 24.0
    r = r * d + 1.0 / 6.0
    r = r * d + 0.5
    return r * d * d


@triton.jit
def log1p(y):
    """log(1 + y) for −1 < y: the rounding of 1 + y is divided out (Kahan). Triton's interpreter has no libdevice."""
    u = 1.0 + y
    return tl.where(u == 1.0, y, tl.log(u) * (y / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def directed(p, q, delta):
    """(p log(p/q) − p + q, q − p): terms of KL(p‖q), δ = log(q/p). Σ(q − p) is 0, and with it an error of the log-sum-exps, which is the
    same in every δ, cancels to first order."""
    near = tl.abs(delta) <= 0.5
    h = exp_remainder(tl.where(near, delta, 0.0))
    minus = tl.where(near, p * (h + delta), q - p)
    term = tl.where(near, p * h, minus - tl.where(p == 0.0, 0.0, p * delta))
    return term, minus


@triton.jit
def log_ratios(delta, beta):
    """(log(m/p), log(m/q)) for m = βp + (1−β)q: log1p((1−β)(e^δ − 1)) and the same minus δ, taken from the side where the exponential
    is at most 1."""
    down = delta <= 0.0
    d = tl.where(down, delta, -delta)
    near = d >= -0.5
    part = tl.where(near, d, 0.0)
    expm1 = tl.where(near, part + exp_remainder(part), tl.exp(d) - 1.0)
    log_m = log1p(tl.where(down, 1.0 - beta, beta) * expm1)
    return tl.where(down, log_m, log_m + delta), tl.where(down, log_m - delta, log_m)


@triton.jit
def jsd_terms(p, q, delta, beta):
    """(β p log(p/m) + (1−β) q log(q/m), q log(q/m), log(q/m)). Where both logarithms are small the first is summed from e^d − 1 − d, in
    which what cancels between p and q has been taken out: β(m − p) + (1−β)(m − q) = 0."""
    to_p, to_q = log_ratios(delta, beta)
    near = tl.abs(delta) <= 0.5
    of_q = tl.where(q == 0.0, 0.0, -q * to_q)
    far = beta * tl.where(p == 0.0, 0.0, -p * to_p) + (1.0 - beta) * of_q
    close = beta * p * exp_remainder(tl.where(near, to_p, 0.0)) + (1.0 - beta) * q * exp_remainder(tl.where(near, to_q, 0.0))
    return tl.where(near, close, far), of_q, -to_q


@triton.jit
def probabilities(xs, xt, lse_s, lse_t, gap):
    """(p, q, δ) of a block, ``gap`` = lse_S − lse_T; columns that both models give no probability have δ = 0.

    δ comes from the difference of the scores: log-probabilities are larger and would be rounded more.
    """
    nowhere = (xs == NEG_INF) & (xt == NEG_INF)
    return tl.exp(xt - lse_t), tl.exp(xs - lse_s), tl.where(nowhere, 0.0, (xs - xt) - gap)


@triton.jit
def row_terms(xs, xt, lse_s, lse_t, gap, beta, DIVERGENCE: tl.constexpr):
    """(terms of D, terms of the row sum that the gradient needs) of a block."""
    p, q, delta = probabilities(xs, xt, lse_s, lse_t, gap)
    if DIVERGENCE == FORWARD:
        term, _ = directed(p, q, delta)
        return term, term
    elif DIVERGENCE == REVERSE:
        term, _ = directed(q, p, -delta)
        return term, term
    else:
        term, of_q, _ = jsd_terms(p, q, delta, beta)
        return term, of_q


@triton.jit
def score_grad(xs, xt, lse_s, lse_t, gap, beta, row_sum, DIVERGENCE: tl.constexpr):
    """dD/dx_S: q − p, q(log(q/p) − D), or (1−β) q (log(q/m) − KL(q‖m))."""
    p, q, delta = probabilities(xs, xt, lse_s, lse_t, gap)
    if DIVERGENCE == FORWARD:
        _, minus = directed(p, q, delta)
        return minus
    elif DIVERGENCE == REVERSE:
        return tl.where(q == 0.0, 0.0, q * (delta - row_sum))
    else:
        _, _, log_q_m = jsd_terms(p, q, delta, beta)
        return tl.where(q == 0.0, 0.0, (1.0 - beta) * q * (log_q_m - row_sum))


@triton.jit
def online(m, s, x):
    """(m, Σ e^(x−m)) with one more block x [BLOCK]: one maximum for the row, a sum for each lane. Milakov & Gimelshein 2018.

    A maximum for each lane, as ``row_log_softmax_fwd`` has it, would spill here on capability 10.0: two rows are read at once.
    """
    top = tl.maximum(m, tl.max(x, 0))
    base = finite_base(top)
    # At most 0 even where m is finite and top is +inf, whose base is 0.
    shrink = tl.exp(tl.minimum(m - base, 0.0))
    return top, s * shrink + tl.exp(x - base)


@triton.jit
def linear_kl_rows(
    student_ptr,
    teacher_ptr,
    dead_ptr,
    ranges_ptr,
    factor_ptr,
    rows_ptr,
    out_ptr,
    student_stride,
    teacher_stride,
    out_stride,
    V,
    tau,
    inv_tau,
    beta,
    DIVERGENCE: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    HAS_DEAD: tl.constexpr,
    RANGES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """rows = τ² D, out = factor · τ² · dD/dz_S. ``out`` may be the student's logits: an element is stored after the value it comes from was
    loaded, and is read by nothing else."""
    row = tl.program_id(0).to(tl.int64)
    s_ptr = student_ptr + row * student_stride
    t_ptr = teacher_ptr + row * teacher_stride
    own_ptr = ranges_ptr
    if RANGES:
        own_ptr = ranges_ptr + row * (2 * RANGES)
    block = tl.arange(0, BLOCK)
    inside = V // BLOCK * BLOCK

    m_s = NEG_INF
    m_t = NEG_INF
    s_s = tl.zeros([BLOCK], tl.float32)
    s_t = tl.zeros([BLOCK], tl.float32)
    for start in range(0, inside, BLOCK):
        xs = load_scores(s_ptr, dead_ptr, own_ptr, start + block, V, inv_tau, HAS_DEAD, RANGES, True)
        xt = load_scores(t_ptr, dead_ptr, own_ptr, start + block, V, inv_tau, HAS_DEAD, RANGES, True)
        m_s, s_s = online(m_s, s_s, xs)
        m_t, s_t = online(m_t, s_t, xt)
    if inside < V:
        xs = load_scores(s_ptr, dead_ptr, own_ptr, inside + block, V, inv_tau, HAS_DEAD, RANGES, False)
        xt = load_scores(t_ptr, dead_ptr, own_ptr, inside + block, V, inv_tau, HAS_DEAD, RANGES, False)
        m_s, s_s = online(m_s, s_s, xs)
        m_t, s_t = online(m_t, s_t, xt)
    log_s = tl.log(tl.sum(s_s, 0))
    log_t = tl.log(tl.sum(s_t, 0))
    lse_s = finite_base(m_s) + log_s
    lse_t = finite_base(m_t) + log_t
    gap = (finite_base(m_s) - finite_base(m_t)) + (log_s - log_t)

    # The forward divergence's gradient needs no sum over the row, so it is written in the pass that sums the terms.
    FUSED: tl.constexpr = NEED_GRAD and DIVERGENCE == FORWARD
    factor = 0.0
    if NEED_GRAD:
        factor = tl.load(factor_ptr + row)
    scale = factor * tau
    to_ptr = out_ptr
    if NEED_GRAD:
        to_ptr = out_ptr + row * out_stride
    terms = tl.zeros([BLOCK], tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, inside, BLOCK):
        xs = load_scores(s_ptr, dead_ptr, own_ptr, start + block, V, inv_tau, HAS_DEAD, RANGES, True)
        xt = load_scores(t_ptr, dead_ptr, own_ptr, start + block, V, inv_tau, HAS_DEAD, RANGES, True)
        term, other = row_terms(xs, xt, lse_s, lse_t, gap, beta, DIVERGENCE)
        terms += term
        sums += other
        if FUSED:
            g = tl.where(factor == 0.0, 0.0, score_grad(xs, xt, lse_s, lse_t, gap, beta, 0.0, DIVERGENCE) * scale)
            tl.store(to_ptr + start + block, g.to(out_ptr.dtype.element_ty))
    if inside < V:
        xs = load_scores(s_ptr, dead_ptr, own_ptr, inside + block, V, inv_tau, HAS_DEAD, RANGES, False)
        xt = load_scores(t_ptr, dead_ptr, own_ptr, inside + block, V, inv_tau, HAS_DEAD, RANGES, False)
        term, other = row_terms(xs, xt, lse_s, lse_t, gap, beta, DIVERGENCE)
        # Columns past the end are −inf in both rows and give 0, but NaN where a whole row is −inf: such a row is NaN anyway.
        terms += term
        sums += other
        if FUSED:
            g = tl.where(factor == 0.0, 0.0, score_grad(xs, xt, lse_s, lse_t, gap, beta, 0.0, DIVERGENCE) * scale)
            tl.store(to_ptr + inside + block, g.to(out_ptr.dtype.element_ty), mask=inside + block < V)
    tl.store(rows_ptr + row, tl.sum(terms, 0) * (tau * tau))

    if NEED_GRAD and not FUSED:
        row_sum = tl.sum(sums, 0)
        for start in range(0, inside, BLOCK):
            xs = load_scores(s_ptr, dead_ptr, own_ptr, start + block, V, inv_tau, HAS_DEAD, RANGES, True)
            xt = load_scores(t_ptr, dead_ptr, own_ptr, start + block, V, inv_tau, HAS_DEAD, RANGES, True)
            g = tl.where(factor == 0.0, 0.0, score_grad(xs, xt, lse_s, lse_t, gap, beta, row_sum, DIVERGENCE) * scale)
            tl.store(to_ptr + start + block, g.to(out_ptr.dtype.element_ty))
        if inside < V:
            xs = load_scores(s_ptr, dead_ptr, own_ptr, inside + block, V, inv_tau, HAS_DEAD, RANGES, False)
            xt = load_scores(t_ptr, dead_ptr, own_ptr, inside + block, V, inv_tau, HAS_DEAD, RANGES, False)
            g = tl.where(factor == 0.0, 0.0, score_grad(xs, xt, lse_s, lse_t, gap, beta, row_sum, DIVERGENCE) * scale)
            tl.store(to_ptr + inside + block, g.to(out_ptr.dtype.element_ty), mask=inside + block < V)
