"""The union of two id lists, and a divergence on it with its closed-form gradient, in plain torch from the definitions.

A slot has an id and two scores, and counts or does not. Letters: T positions, U slots, p the teacher's distribution over a position's
slots, q the student's.
"""

from __future__ import annotations

import torch

from arkfast.kernels.common.ids import narrowed
from arkfast.kernels.common.precision import wide_dtype

NEG_INF = float("-inf")
TAIL_FLOOR = 2.0**-17
"""Smallest tail mass told from 0: a float32 logit near 16 is good to 1e-6, so 1 − Σ of probabilities means nothing below about 1e-5."""


def unique_ids(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """ids [T, U] → (the same with every repeat of an id and every negative entry as −1, int32; count of the rest [T] int32)."""
    ids = narrowed(ids)
    # Stable, so the first of equal ids in a row is the one in the lowest slot.
    ordered, slot = ids.sort(dim=1, stable=True)
    kept = ordered >= 0
    kept[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    keep = torch.zeros_like(kept).scatter_(1, slot, kept)
    return ids.masked_fill(~keep, -1), keep.sum(1, dtype=torch.int32)


def member(ids: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """[T, A] bool: whether ids [T, A] occur in the same row of others [T, B]; a negative id never does."""
    return (ids[:, :, None] == others[:, None, :]).any(-1) & (ids >= 0)


def tail_scores(scores: torch.Tensor, inside: torch.Tensor, lse: torch.Tensor, tau: float) -> torch.Tensor:
    """τ · log(e^lse − Σ_inside e^(z/τ)) [T]: the score of one more slot that stands for everything outside the union.

    Args:
        scores: [T, U]; inside: [T, U] bool; lse: [T] log-sum-exp of z/τ over all ids.
    """
    seen = (scores / tau).masked_fill(~inside, NEG_INF).logsumexp(1) - lse
    return tau * (lse + torch.log(-torch.expm1(seen.clamp_max(-TAIL_FLOOR))))


def divergence_rows(
    teacher: torch.Tensor,
    student: torch.Tensor,
    inside: torch.Tensor,
    valid: torch.Tensor,
    *,
    tau: float,
    divergence: str,
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """τ² · D(p, q) of each row with p = softmax(teacher/τ), q = softmax(student/τ) over the row's inside slots, and its gradient.

    forward_kl: D = KL(p‖q).  reverse_kl: D = KL(q‖p).  jsd: D = β KL(p‖m) + (1−β) KL(q‖m) with m = βp + (1−β)q.

    Args:
        teacher, student: [T, U] scores; teacher scores are finite inside.
        inside: [T, U] bool, slots that count.
        valid: [T] bool, rows that count; the others give 0 and no gradient.

    Returns:
        (rows [T], dD/dstudent [T, U]) in float32 or wider. Both are exactly 0 where the scores are equal.
    """
    dtype = wide_dtype(teacher, student)
    inside = inside & valid[:, None]
    # Rows that do not count get equal scores everywhere, so that no NaN arises in them.
    outside = ~inside & valid[:, None]

    def log_softmax(scores: torch.Tensor) -> torch.Tensor:
        return (scores.to(dtype) / tau).masked_fill(outside, NEG_INF).masked_fill(~valid[:, None], 0.0).log_softmax(1)

    logp, logq = log_softmax(teacher), log_softmax(student)
    p, q = logp.exp(), logq.exp()
    delta = logq - logp
    # 0 · log 0 = 0. Slots outside have p = q = 0 and come out as 0 here too.
    no_p, no_q = p == 0, q == 0
    if divergence == "forward_kl":
        rows = -(p * delta).masked_fill(no_p, 0.0).sum(1)
        grad = tau * (q - p)
    elif divergence == "reverse_kl":
        rows = (q * delta).masked_fill(no_q, 0.0).sum(1)
        grad = tau * (q * (delta - rows[:, None])).masked_fill(no_q, 0.0)
    else:
        # log(m/p) = log(1 + (1−β)(e^δ − 1)) and log(m/q) = log(m/p) − δ = log(1 + β(e^−δ − 1)), δ = log(q/p): each is taken from the side
        # where the exponential is at most 1.
        m_over_p = torch.log1p((1 - beta) * torch.expm1(delta.clamp_max(0.0)))
        m_over_q = torch.log1p(beta * torch.expm1(-delta.clamp_min(0.0)))
        m_over_p, m_over_q = torch.where(delta > 0, m_over_q + delta, m_over_p), torch.where(delta > 0, m_over_q, m_over_p - delta)
        kl_pm = -(p * m_over_p).masked_fill(no_p, 0.0).sum(1)
        kl_qm = -(q * m_over_q).masked_fill(no_q, 0.0).sum(1)
        rows = beta * kl_pm + (1 - beta) * kl_qm
        # ∂D/∂q = (1−β) log(q/m); the softmax takes its mean under q away.
        grad = tau * (1 - beta) * (q * (-m_over_q - kl_qm[:, None])).masked_fill(no_q, 0.0)
    return (rows * tau**2).masked_fill(~valid, 0.0), grad.masked_fill(~inside, 0.0)
