"""``union_support`` and ``union_kl``: the building blocks of the loss on scores that the caller already has.

The arithmetic is in ``reference`` and ``kernel``; the losses are in ``loss`` and ``logits``.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch

from arkfast.kernels.common.backend import Backend, resolve_backend
from arkfast.kernels.common.checks import (
    check_beta,
    check_choice,
    check_count,
    check_flag,
    check_floating,
    check_ids,
    check_shapes,
    check_temperature,
)
from arkfast.kernels.common.ids import narrowed
from arkfast.kernels.common.recording import first_order, recorded
from arkfast.kernels.union_kl import reference
from arkfast.kernels.union_kl.launcher import DIVERGENCES, MOST_SLOTS, MOST_UNION, launch_rows, launch_union, unfit_slots

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]


class UnionSupport(NamedTuple):
    """The ids that two lists hold together."""

    ids: torch.Tensor
    """[T, Ks + Kt] int32: the student's slots, then the teacher's; −1 where a slot is empty or repeats an earlier one."""
    count: torch.Tensor  # type: ignore[assignment] # hides tuple.count, which a tensor does not need
    """[T] int32: different ids of each row."""


class UnionKLRows(NamedTuple):
    """A divergence for each position."""

    rows: torch.Tensor
    """[T] float32 (float64 for float64 scores), τ² · divergence, with gradient to the student's scores; 0 where a row does not count."""
    valid: torch.Tensor
    """[T] bool: rows that count."""
    support: torch.Tensor
    """[T] int32: slots with an id and a finite teacher score."""


class _DivergenceRows(torch.autograd.Function):
    """Rows of the divergence; the gradient to the student's scores is known in closed form when the rows are."""

    @staticmethod
    def forward(
        ctx: Any,
        student: torch.Tensor,
        teacher: torch.Tensor,
        ids: torch.Tensor,
        tail: bool,
        min_support: int,
        tau: float,
        divergence: str,
        beta: float,
        backend: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        run = launch_rows if backend == "triton" else _rows_in_torch
        rows, support, grad = run(
            student,
            teacher,
            ids,
            tail=tail,
            min_support=min_support,
            tau=tau,
            divergence=divergence,
            beta=beta,
            grad=ctx.needs_input_grad[0],
        )
        if grad is not None:
            ctx.save_for_backward(grad)
            ctx.dtype = student.dtype
        ctx.mark_non_differentiable(support)
        return rows, support

    @staticmethod
    @first_order("union_kl")
    def backward(ctx: Any, grad_rows: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        # Mask, don't multiply: the gradient of a row that is left out may be NaN, and NaN · 0 is NaN.
        return (grad * grad_rows[:, None]).masked_fill_((grad_rows == 0)[:, None], 0.0).to(ctx.dtype), *(None,) * 8


def _rows_in_torch(
    student: torch.Tensor,
    teacher: torch.Tensor,
    ids: torch.Tensor,
    *,
    tail: bool,
    min_support: int,
    tau: float,
    divergence: str,
    beta: float,
    grad: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    inside = (ids >= 0) & teacher[:, : ids.shape[1]].isfinite()
    support = inside.sum(1, dtype=torch.int32)
    if tail:
        inside = torch.cat([inside, inside.new_ones(inside.shape[0], 1)], dim=1)
    rows, d_student = reference.divergence_rows(
        teacher, student, inside, support >= min_support, tau=tau, divergence=divergence, beta=beta
    )  # fmt: skip
    return rows, support, d_student if grad else None


def check_loss(op: str, tau: float, divergence: str, beta: float, min_support: int) -> None:
    """Raises ValueError for loss settings out of range."""
    check_temperature(op, tau)
    check_choice(op, "divergence", divergence, DIVERGENCES)
    check_count(op, "min_support", min_support)
    check_beta(op, divergence, beta)


@torch.no_grad()
def union_support(student_ids: torch.Tensor, teacher_ids: torch.Tensor, *, backend: Backend = "auto") -> UnionSupport:
    """The union of two id lists per position, in slots: what lies in a slot keeps its place, repeats and empty slots become −1.

    Args:
        student_ids: [T, Ks] int32 or int64, negative where empty.
        teacher_ids: [T, Kt] the same, on the same vocabulary.

    Raises:
        ValueError: on wrong shapes, dtypes or backend.
    """
    op = "union_support"
    sizes = check_shapes(op, student_ids=(student_ids, "T Ks"), teacher_ids=(teacher_ids, "T Kt"))
    check_ids(op, student_ids=student_ids, teacher_ids=teacher_ids)
    if resolve_backend(backend, op, student_ids, unfit=unfit_slots(sizes["Ks"] + sizes["Kt"], MOST_UNION)) == "triton":
        return UnionSupport(*launch_union(student_ids, teacher_ids))
    return UnionSupport(*reference.unique_ids(torch.cat([narrowed(student_ids), narrowed(teacher_ids)], dim=1)))


def union_kl(
    teacher_scores: torch.Tensor,
    student_scores: torch.Tensor,
    ids: torch.Tensor,
    *,
    tau: float = 1.0,
    divergence: Divergence = "forward_kl",
    beta: float = 0.5,
    tail: bool = False,
    teacher_lse: torch.Tensor | None = None,
    student_lse: torch.Tensor | None = None,
    min_support: int = 2,
    backend: Backend = "auto",
) -> UnionKLRows:
    """τ² · D(p, q) for each position, p = softmax(teacher/τ) and q = softmax(student/τ) over the slots that hold an id and a finite
    teacher score.

    A constant added to a row of either scores changes nothing. D is KL(p‖q) for "forward_kl", KL(q‖p) for "reverse_kl" and
    β KL(p‖m) + (1−β) KL(q‖m), m = βp + (1−β)q, for "jsd". The gradient goes to ``student_scores`` (and ``student_lse``) only.

    Args:
        teacher_scores: [T, U] logits or log-probabilities; a slot that is −inf, +inf or NaN does not count.
        student_scores: [T, U].
        ids: [T, U] int32 or int64 as ``union_support`` gives them; negative slots do not count. An id that is repeated counts each time.
        tau: temperature.
        beta: weight of the teacher in "jsd", between 0 and 1.
        tail: one more slot stands for all ids outside the union, so that p and q are the full distributions with those ids merged and
            nothing is renormalised; needs both lse. Tail masses below 2⁻¹⁷ are taken as 2⁻¹⁷.
        teacher_lse, student_lse: [T] log-sum-exp of the logits / τ over all allowed ids (``linear_log_softmax(..., return_lse=True)``
            gives the student's with gradient); used only, and needed, with ``tail``; the scores must then be logits.
        min_support: slots that a row needs to count, the tail not among them; other rows give 0 and no gradient.

    Raises:
        ValueError: on wrong shapes, dtypes or settings.
    """
    op = "union_kl"
    check_flag(op, tail=tail)
    check_loss(op, tau, divergence, beta, min_support)
    sizes = check_shapes(
        op,
        teacher_scores=(teacher_scores, "T U"),
        student_scores=(student_scores, "T U"),
        ids=(ids, "T U"),
        teacher_lse=(teacher_lse, "T"),
        student_lse=(student_lse, "T"),
    )
    check_floating(op, teacher_scores=teacher_scores, student_scores=student_scores, teacher_lse=teacher_lse, student_lse=student_lse)
    check_ids(op, ids=ids)
    if tail != (teacher_lse is not None) or tail != (student_lse is not None):
        raise ValueError(f"{op}: tail=True needs teacher_lse and student_lse, and tail=False takes neither")

    dtype = reference.wide_dtype(teacher_scores, student_scores)
    unfit = "float64 inputs" if dtype == torch.float64 else unfit_slots(sizes["U"] + tail, MOST_SLOTS)
    chosen = resolve_backend(backend, op, student_scores, unfit=unfit)

    teacher_scores = teacher_scores.detach()
    if teacher_lse is not None and student_lse is not None:
        inside = (ids >= 0) & teacher_scores.isfinite()
        teacher_scores, student_scores = teacher_scores.to(dtype), student_scores.to(dtype)
        unseen = reference.tail_scores(teacher_scores, inside, teacher_lse.detach().to(dtype), tau)
        teacher_scores = torch.cat([teacher_scores, unseen[:, None]], dim=1)
        unseen = reference.tail_scores(student_scores, inside, student_lse.to(dtype), tau)
        student_scores = torch.cat([student_scores, unseen[:, None]], dim=1)
    rows, support = _DivergenceRows.apply(*recorded(student_scores), teacher_scores, ids, tail, min_support, tau, divergence, beta, chosen)
    return UnionKLRows(rows, support >= min_support, support)
