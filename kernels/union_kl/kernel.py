"""The distillation loss of one position per program.

Letters: T positions, U slots a position (the student's ids, then the teacher's), UB ≥ U a power of two, H features, p the teacher's
distribution over a position's slots, q the student's. A slot is ``on`` when it counts.
"""

from __future__ import annotations

import triton
import triton.language as tl

FORWARD_KL = tl.constexpr(0)
REVERSE_KL = tl.constexpr(1)
JSD = tl.constexpr(2)
UNION = tl.constexpr(0)
TEACHER = tl.constexpr(1)
STUDENT = tl.constexpr(2)
INTERSECTION = tl.constexpr(3)


@triton.jit
def _log1p(x):
    """log(1 + x) for x > −1 to a few units in the last place of the result."""
    # W. Kahan: what rounding does to u = 1 + x cancels in log(u) / (u − 1), which is smooth at 1.
    u = 1.0 + x
    d = u - 1.0
    return tl.where(d == 0.0, x, tl.log(u) * (x / tl.where(d == 0.0, 1.0, d)))


@triton.jit
def _expm1(x):
    """e^x − 1 for x ≤ 0 to a few units in the last place of the result."""
    # As above: (u − 1) / log(u) of the rounded u = e^x.
    u = tl.exp(x)
    d = u - 1.0
    log_u = tl.log(tl.where(d == -1.0, 1.0, u))
    near = tl.where(d == 0.0, x, d * (x / tl.where(log_u == 0.0, 1.0, log_u)))
    return tl.where(d == -1.0, -1.0, near)


@triton.jit
def _log_softmax(scores, on, some, tau):
    """(log-probabilities, probabilities) of scores/τ [UB] over the slots that are on; ``some`` tells whether any is."""
    x = tl.where(on, scores / tau, float("-inf"))
    x = x - tl.where(some, tl.max(x, 0), 0.0)
    e = tl.where(on, tl.exp(x), 0.0)
    total = tl.where(some, tl.sum(e, 0), 1.0)
    return x - tl.log(total), e / total


@triton.jit
def _divergence(teacher, student, on, count, tau, beta, KIND: tl.constexpr):
    """(D(p, q), τ² · dD/dstudent [UB]) over the slots that are on; both exactly 0 where the scores are equal."""
    some = count > 0
    log_p, p = _log_softmax(teacher, on, some, tau)
    log_q, q = _log_softmax(student, on, some, tau)
    delta = log_q - log_p
    # 0 · log 0 = 0.
    if KIND == FORWARD_KL:
        row = -tl.sum(tl.where(on & (p != 0.0), p * delta, 0.0), 0)
        grad = tau * (q - p)
    elif KIND == REVERSE_KL:
        row = tl.sum(tl.where(on & (q != 0.0), q * delta, 0.0), 0)
        grad = tau * tl.where(q != 0.0, q * (delta - row), 0.0)
    else:
        # log(m/p) = log(1 + (1−β)(e^δ − 1)) and log(m/q) = log(m/p) − δ = log(1 + β(e^−δ − 1)), δ = log(q/p): each from the side where
        # the exponential is at most 1. Both exponents are −|δ|.
        shrink = _expm1(tl.where(on, -tl.abs(delta), 0.0))
        from_p = _log1p((1.0 - beta) * shrink)
        from_q = _log1p(beta * shrink)
        m_over_p = tl.where(delta > 0.0, from_q + delta, from_p)
        m_over_q = tl.where(delta > 0.0, from_q, from_p - delta)
        kl_pm = -tl.sum(tl.where(on & (p != 0.0), p * m_over_p, 0.0), 0)
        kl_qm = -tl.sum(tl.where(on & (q != 0.0), q * m_over_q, 0.0), 0)
        row = beta * kl_pm + (1.0 - beta) * kl_qm
        # ∂D/∂q = (1−β) log(q/m); the softmax takes its mean under q away.
        grad = tau * (1.0 - beta) * tl.where(q != 0.0, q * (-m_over_q - kl_qm), 0.0)
    return row, tl.where(on, grad, 0.0)


@triton.jit
def _first_of_equals(same, live, slot):
    """Slots [UB] that are live and have no live equal in a lower slot. ``same`` [UB, UB]: slots of one id."""
    earlier = same & (live[None, :] > 0) & (slot[None, :] < slot[:, None])
    return live * (1 - tl.max(earlier.to(tl.int32), 1))


@triton.jit
def _narrowed(ids):
    """As ``common.ids.narrowed``."""
    return tl.minimum(tl.maximum(ids, -1), 2147483647).to(tl.int32)


@triton.jit
def _slot_ids(student_ids, teacher_ids, student_at, teacher_at, slot, KS, KT):
    """Both lists' ids [UB] in their slots, −1 past the last."""
    mine = tl.load(student_ids + student_at + slot, mask=slot < KS, other=-1)
    theirs = tl.load(teacher_ids + teacher_at + slot - KS, mask=(slot >= KS) & (slot < KS + KT), other=-1)
    return tl.where(slot < KS, _narrowed(mine), _narrowed(theirs))


@triton.jit(do_not_specialize=["KS", "KT"])
def union_ids(student_ids, teacher_ids, ids, support, student_stride, teacher_stride, KS, KT, UB: tl.constexpr):
    """The union of two lists in slots, −1 where a slot is empty or repeats an earlier one, and the number of the others."""
    t = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, UB)
    found = _slot_ids(student_ids, teacher_ids, t * student_stride, t * teacher_stride, slot, KS, KT)
    first = _first_of_equals(found[:, None] == found[None, :], (found >= 0).to(tl.int32), slot)
    tl.store(ids + t * (KS + KT) + slot, tl.where(first > 0, found, -1), mask=slot < KS + KT)
    tl.store(support + t, tl.sum(first, 0))


@triton.jit(do_not_specialize=["U", "min_support"])
def union_kl_rows(
    teacher_scores, student_scores, ids, rows, support, grad, teacher_stride, student_stride, ids_stride, U, min_support, tau, beta,
    KIND: tl.constexpr, TAIL: tl.constexpr, GATHER: tl.constexpr, NEED_GRAD: tl.constexpr, UB: tl.constexpr,
):  # fmt: skip
    """τ² · D and its gradient to the student's scores. TAIL: one score more, always on and not counted, stands for all other ids.
    GATHER: ``student_scores`` has a column for each id instead of one for each slot."""
    t = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, UB)
    teacher = tl.load(teacher_scores + t * teacher_stride + slot, mask=slot < U + TAIL, other=float("-inf")).to(tl.float32)
    found = tl.load(ids + t * ids_stride + slot, mask=slot < U, other=-1)
    if GATHER:
        student = tl.load(student_scores + t * student_stride + found, mask=found >= 0, other=0.0).to(tl.float32)
    else:
        student = tl.load(student_scores + t * student_stride + slot, mask=slot < U + TAIL, other=0.0).to(tl.float32)
    on = ((found >= 0) & (tl.abs(teacher) < float("inf"))).to(tl.int32)
    count = tl.sum(on, 0)
    if TAIL:
        on = tl.where(slot == U, 1, on)
    valid = (count >= min_support).to(tl.int32)
    row, dz = _divergence(teacher, student, on * valid > 0, valid, tau, beta, KIND)
    tl.store(rows + t, tl.where(valid > 0, row * tau * tau, 0.0))
    tl.store(support + t, count)
    if NEED_GRAD:
        tl.store(grad + t * (U + TAIL) + slot, dz, mask=slot < U + TAIL)


@triton.jit(do_not_specialize=["KS", "KT", "V", "min_support"])
def union_kl_sparse(
    hidden, weight, student_ids, teacher_ids, teacher_scores, teacher_lse, rows, support, ids, grad,
    hidden_stride, weight_stride, student_stride, teacher_stride, score_stride, KS, KT, V, H, min_support, tau, beta,
    KIND: tl.constexpr, SUPPORT: tl.constexpr, ORIGINAL: tl.constexpr, NEED_GRAD: tl.constexpr,
    UB: tl.constexpr, BH: tl.constexpr, NH: tl.constexpr,
):  # fmt: skip
    """The whole loss of a position: its support, the student's scores from the gathered rows of the weight, τ² · D, and its gradient to
    those scores. NH = ⌈H / BH⌉."""
    t = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, UB)
    U = KS + KT
    found = _slot_ids(student_ids, teacher_ids, t * student_stride, t * teacher_stride, slot, KS, KT)
    teacher = tl.load(teacher_scores + t * score_stride + slot, mask=slot < U, other=float("-inf")).to(tl.float32)
    same = (found[:, None] == found[None, :]) & (found >= 0)[:, None]
    live = (found >= 0).to(tl.int32)
    if SUPPORT != UNION or ORIGINAL:
        across = same & ((slot < KS).to(tl.int32)[:, None] != (slot < KS).to(tl.int32)[None, :])
        shared = tl.max(across.to(tl.int32), 1)
        if ORIGINAL:
            teacher = tl.where((slot < KS) & (shared == 0), teacher - tl.load(teacher_lse + t).to(tl.float32), teacher)
        if SUPPORT == TEACHER:
            live = tl.where(slot < KS, live * shared, live)
        elif SUPPORT == STUDENT:
            live = tl.where(slot < KS, live, live * shared)
        elif SUPPORT == INTERSECTION:
            live = live * shared
    # Slots that the teacher cannot see leave before repeats do: the same id may be seen in a later slot.
    live = tl.where(tl.abs(teacher) < float("inf"), live, 0)
    live = _first_of_equals(same, live, slot)
    count = tl.sum(live, 0)
    valid = (count >= min_support).to(tl.int32)
    on = live * valid > 0
    known = on & (found < V)
    tl.store(support + t, count)

    # A product and not tl.where, which Triton 3.6 cannot lay out here; it is 0 where an id is not on.
    base = (found * live * valid).to(tl.int64) * weight_stride
    # A thread loads PART neighbours of a row and sums them alone; threads meet once, after the loop.
    PART: tl.constexpr = min(BH, 128 // weight.dtype.element_ty.primitive_bitwidth)
    sums = tl.zeros((UB, BH // PART), tl.float32)
    for j in range(NH):
        c = j * BH + tl.arange(0, BH)
        h = tl.load(hidden + t * hidden_stride + c, mask=c < H, other=0.0).to(tl.float32)
        w = tl.load(weight + base[:, None] + c[None, :], mask=known[:, None] & (c < H)[None, :], other=0.0).to(tl.float32)
        sums += tl.sum(tl.reshape(w * h[None, :], (UB, BH // PART, PART)), 2)
    student = tl.sum(sums, 1)
    # An id past the end cannot raise here; its score shows it, and with it the row's loss and gradients.
    student = tl.where(on & (found >= V), float("nan"), student)

    row, dz = _divergence(teacher, student, on, valid, tau, beta, KIND)
    tl.store(rows + t, tl.where(valid > 0, row * tau * tau, 0.0))
    if NEED_GRAD:
        tl.store(grad + t * U + slot, dz, mask=slot < U)
        tl.store(ids + t * U + slot, tl.where(on, found, -1), mask=slot < U)


@triton.jit(do_not_specialize=["U"])
def scatter_rows(grad, scale, ids, out, V, U, UB: tl.constexpr):
    """out[t, ids[t, u]] = scale[t] · grad[t, u] where the id is not negative; ids of a row differ. A scale of 0 gives 0."""
    t = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, UB)
    found = tl.load(ids + t * U + slot, mask=slot < U, other=-1)
    factor = tl.load(scale + t)
    value = tl.where(factor == 0.0, 0.0, tl.load(grad + t * U + slot, mask=slot < U, other=0.0) * factor)
    tl.store(out + t * V + found, value.to(out.dtype.element_ty), mask=found >= 0)
