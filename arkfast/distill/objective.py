"""What the student is drawn towards at each position: which divergence, between which distributions, on which ids.

``divergences`` is called with the hidden states that predict the produced tokens, inside the model's forward, where the head is whole. On a
support of a few ids nothing of the vocabulary's size is computed by the student. Two choices need its whole distribution and so one product
with its head, in chunks: the tail bucket and the full support.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from arkfast.kernels import UnionKLRows, linear_kl, linear_log_softmax, opd_union_kl, union_kl, union_support
from arkfast.records import AllowedTokens, InputError, Rollout, TeacherScores

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]
Support = Literal["union", "teacher", "student", "intersection", "full"]
Kind = Literal["divergence", "policy_gradient", "fixed_advantage"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The loss of on-policy distillation at one position; the default is the paper's.

    Raises:
        ValueError: a tail beside the full support.
    """

    divergence: Divergence = "forward_kl"
    """forward_kl: KL(p‖q) of teacher p and student q; reverse_kl: KL(q‖p); jsd: β KL(p‖m) + (1−β) KL(q‖m), m = βp + (1−β)q."""
    beta: float = 0.5
    """β of jsd."""
    support: Support = "union"
    """Ids on which both are renormalised: those of either top-k list, of the teacher's, of the student's, of both; full: all that are
    allowed."""
    tail: bool = False
    """Nothing is renormalised, and one more slot stands for all allowed ids outside the support."""
    kind: Kind = "divergence"
    """divergence: that of the distributions; policy_gradient: KL(q‖p) estimated from the produced tokens; fixed_advantage: the same with −1
    in the place of every advantage, which teaches nothing on average and is there to be compared with."""
    control_variate: bool = True
    """Whether a mean advantage is taken from that of policy_gradient."""

    def __post_init__(self) -> None:
        if self.tail and self.support == "full":
            raise ValueError("a tail bucket stands for what a support leaves out, and the full one leaves out nothing; drop one of them")

    @property
    def needs_lse(self) -> bool:
        """Whether the teacher must report its log-sum-exp."""
        return self.tail or self.needs_sampled

    @property
    def needs_sampled(self) -> bool:
        """Whether the teacher must report its scores of the produced tokens."""
        return self.kind == "policy_gradient"

    @property
    def needs_states(self) -> bool:
        """Whether the teacher must report hidden states and its head."""
        return self.support == "full"


class Divergences(NamedTuple):
    """The divergence over all positions."""

    total: torch.Tensor
    """Scalar float32 or wider: Σ τ² · D over the positions that count, each times its weight, with gradient."""
    valid: torch.Tensor
    """[N] bool: positions that count."""
    support: torch.Tensor
    """[N] int32: ids on which the two are compared, the tail not among them."""


def divergences(
    objective: Objective,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    rollout: Rollout,
    scores: TeacherScores,
    *,
    tau: float,
    weights: torch.Tensor | None = None,
    blocked: torch.Tensor | None = None,
    allowed: AllowedTokens | None = None,
) -> Divergences:
    """Σ τ² · D(p, q) over the produced positions that the teacher could score.

    A constant added to all of a position's teacher scores (and to its log-sum-exp · τ) changes nothing.

    Args:
        objective: what D is and where.
        hidden: [N, H] the student's states that predict the produced tokens.
        weight: [V, H] its head.
        rollout: what it produced, with its top-k ids.
        scores: the teacher's view.
        tau: τ, the temperature of both distributions.
        weights: [N] float32 factors of the positions; None: 1.
        blocked: int32 ids that the student never produces; read, and needed, with the tail or the full support.
        allowed: the same as ranges of each position; needed with the full support.

    Raises:
        InputError: the objective needs more of the teacher than it gives.
    """
    assert rollout.topk_ids is not None, "a rollout for distillation keeps its top-k ids"
    if objective.support == "full":
        return _full(objective, hidden, weight, rollout, scores, tau=tau, weights=weights, blocked=blocked, allowed=allowed)
    if not objective.tail:
        union = opd_union_kl(
            hidden,
            weight,
            rollout.topk_ids,
            scores.ids,
            _teacher_scores(scores),
            tau=tau,
            divergence=objective.divergence,
            beta=objective.beta,
            support=objective.support,
            row_weight=weights,
            reduction="sum",
        )
        return Divergences(union.loss, union.valid, union.support)
    if scores.lse is None:
        raise InputError("--tail_bucket: the teacher reports no log-sum-exp of its scores; leave the flag out or give another teacher")
    ids = listed_ids(objective.support, rollout, scores)
    ranges = None if allowed is None else allowed.row_ranges(rollout.packed_index()[1])
    log_q = linear_log_softmax(hidden, weight, ids, tau=tau, blocked=blocked, ranges=ranges)
    rows = tail_rows(ids, log_q, scores, scores.lse, tau=tau, divergence=objective.divergence, beta=objective.beta)
    return Divergences((rows.rows if weights is None else rows.rows * weights).sum(), rows.valid, rows.support)


def listed_ids(support: Support, rollout: Rollout, scores: TeacherScores) -> torch.Tensor:
    """[N, Ks + Kt] int32: the ids of a support that the teacher sees, each once; −1 in the other slots."""
    assert rollout.topk_ids is not None
    kept = rollout.topk_ids.shape[1]
    # A slot without a finite score of the teacher leaves before repeats do: the same id may be seen in a later slot.
    ids = torch.cat(_of_support(support, rollout.topk_ids, scores.ids), 1).masked_fill(~_teacher_scores(scores).isfinite(), -1)
    return union_support(ids[:, :kept], ids[:, kept:]).ids


def tail_rows(
    ids: torch.Tensor,
    log_q: torch.Tensor,
    scores: TeacherScores,
    lse: torch.Tensor,
    *,
    tau: float = 1.0,
    divergence: Divergence,
    beta: float = 0.5,
) -> UnionKLRows:
    """The divergence on some ids and one slot for all others, position by position.

    Args:
        ids: [N, Ks + Kt] of ``listed_ids``.
        log_q: [N, Ks + Kt] the student's log-probabilities of them at temperature τ, with gradient or without.
        scores: the teacher's view.
        lse: [N] its log-sum-exp at τ.
        tau, divergence, beta: as in ``divergences``.
    """
    # Log-probabilities take the place of the student's scores, so that its log-sum-exp is 0.
    return union_kl(
        _teacher_scores(scores),
        tau * log_q.masked_fill(ids < 0, 0.0),
        ids,
        tau=tau,
        divergence=divergence,
        beta=beta,
        tail=True,
        teacher_lse=lse,
        student_lse=torch.zeros_like(log_q[:, 0]),
        min_support=1,
    )


def _teacher_scores(scores: TeacherScores) -> torch.Tensor:
    """[N, Ks + Kt] at the student's slots, then at the teacher's own; −inf where it could not score the position."""
    return torch.cat([scores.student_scores, scores.scores], 1).masked_fill(~scores.valid[:, None], float("-inf"))


def overlap(student_ids: torch.Tensor, teacher_ids: torch.Tensor) -> torch.Tensor:
    """[N, Ks] bool: the ids [N, Ks] of one list that stand in the other [N, Kt]; an empty slot (negative) never does."""
    return (student_ids[:, :, None] == teacher_ids[:, None, :]).any(2) & (student_ids >= 0)


def _of_support(support: Support, student_ids: torch.Tensor, teacher_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both lists with −1 in the place of ids that the support does not have."""
    student, teacher = student_ids, teacher_ids
    if support in ("teacher", "intersection"):
        student = student_ids.masked_fill(~overlap(student_ids, teacher_ids), -1)
    if support in ("student", "intersection"):
        teacher = teacher_ids.masked_fill(~overlap(teacher_ids, student_ids), -1)
    return student, teacher


def _full(
    objective: Objective,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    rollout: Rollout,
    scores: TeacherScores,
    *,
    tau: float,
    weights: torch.Tensor | None,
    blocked: torch.Tensor | None,
    allowed: AllowedTokens | None,
) -> Divergences:
    if scores.states is None or scores.head is None:
        raise InputError("--support full: the teacher reports no hidden states; give a teacher of the student's vocabulary in this process")
    assert allowed is not None, "all ids are those that are allowed"
    width = allowed.width(min(len(weight), len(scores.head)))
    total = linear_kl(
        hidden,
        weight[:width],
        scores.states,
        scores.head[:width],
        tau=tau,
        divergence=objective.divergence,
        beta=objective.beta,
        blocked=blocked,
        ranges=allowed.row_ranges(rollout.packed_index()[1]),
        row_weight=scores.valid.to(torch.float32) if weights is None else weights.masked_fill(~scores.valid, 0.0),
        reduction="sum",
    )
    return Divergences(total, scores.valid, torch.full_like(scores.valid, allowed.count, dtype=torch.int32))
