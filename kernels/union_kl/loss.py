"""``opd_union_kl``: the loss a trainer calls, on hidden states and a head.

Supports, the validity of rows and reductions are decided here. In torch the products are those of ``gather_linear`` and the divergence is
that of ``union_kl``; in Triton ``fused`` has both. Nothing here waits for the device: counts stay where they are.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from arkfast.kernels.common.backend import Backend, resolve_backend
from arkfast.kernels.common.checks import check_choice, check_floating, check_ids, check_shapes
from arkfast.kernels.common.ids import narrowed
from arkfast.kernels.common.recording import recorded
from arkfast.kernels.gather_linear import gather_linear
from arkfast.kernels.union_kl import reference
from arkfast.kernels.union_kl.fused import Settings, SparseUnionKL
from arkfast.kernels.union_kl.launcher import MOST_UNION, SUPPORTS, unfit_slots
from arkfast.kernels.union_kl.op import Divergence, check_loss, union_kl

Support = Literal["union", "teacher", "student", "intersection"]
Reduction = Literal["mean", "sum", "none"]
REDUCTIONS = ("mean", "sum", "none")
TEACHER_SCORES = ("logits", "original")


class UnionKL(NamedTuple):
    """The loss and what it was made of."""

    loss: torch.Tensor
    """Scalar ([T] for reduction "none") in float32 or wider, with gradient."""
    rows: torch.Tensor
    """[T] τ² · divergence of each position, without weights and without gradient; 0 where a row does not count."""
    valid: torch.Tensor
    """[T] bool: rows that count."""
    support: torch.Tensor
    """[T] int32: ids of the row's support with a finite teacher score."""


def reduce_rows(rows: torch.Tensor, valid: torch.Tensor, row_weight: torch.Tensor | None, reduction: str) -> torch.Tensor:
    """Rows [T] → the weighted rows, their sum, or that sum over max(1, number of valid rows); weights are not in the divisor.

    A zero-weight row adds no loss or gradient, even if NaN.
    """
    if row_weight is not None:
        # The weight is what gets masked: the product's gradient must not meet a NaN weight of a row that does not count.
        row_weight = row_weight.detach().to(rows.dtype).masked_fill(~valid, 0.0)
        rows = (rows * row_weight).masked_fill(row_weight == 0, 0.0)
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.sum() / valid.sum().clamp_min(1)


def opd_union_kl(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    student_ids: torch.Tensor,
    teacher_ids: torch.Tensor,
    teacher_scores: torch.Tensor,
    *,
    tau: float = 1.0,
    divergence: Divergence = "forward_kl",
    beta: float = 0.5,
    support: Support = "union",
    min_support: int = 2,
    row_weight: torch.Tensor | None = None,
    reduction: Reduction = "mean",
    teacher_score: Literal["logits", "original"] = "logits",
    teacher_lse: torch.Tensor | None = None,
    backend: Backend = "auto",
) -> UnionKL:
    """The on-policy distillation loss: τ² · D(p, q) on each position's support, with gradients to ``hidden`` and ``weight``.

    U is the set of ids of the support that have a finite teacher score; p = softmax(z_T[U]/τ), q = softmax(z_S[U]/τ), with z_S =
    weight[U] · hidden computed in float32 or wider from those rows of the weight alone. A position counts when U has at least
    ``min_support`` ids; the others give no loss and no gradient and are not in the mean. A constant added to a row of ``teacher_scores``
    changes nothing. An id in several slots counts once, with the score of the first slot where the teacher's is finite. Ids that may not
    take part have no place in the lists: ``topk_lse`` and ``linear_topk_lse`` leave them out (``blocked``, ``ranges``).

    The head is whole: one that is cut along its vocabulary (tensor parallel) is not supported, since a position's softmax runs over ids of
    several parts. Under fully sharded data parallelism call this inside the forward of the module that owns the head, where it is whole.

    Args:
        hidden: [T, H] the student's last hidden states, bfloat16, float16, float32 or float64.
        weight: [V, H] the student's head. An id of a support that is V or more is an error of the torch backend (on a GPU a failed
            device-side assertion); the kernels, which cannot raise, make the loss of its row NaN.
        student_ids: [T, Ks] int32 or int64 the student's top-k, negative where empty.
        teacher_ids: [T, Kt] the teacher's top-k, in the student's ids.
        teacher_scores: [T, Ks + Kt] the teacher's logits at the student's slots, then at its own, before any repeats are removed; −inf
            where it cannot see an id. Log-probabilities do as well.
        tau: temperature.
        divergence: "forward_kl" KL(p‖q), "reverse_kl" KL(q‖p), or "jsd" β KL(p‖m) + (1−β) KL(q‖m), m = βp + (1−β)q.
        beta: weight of the teacher in "jsd", between 0 and 1.
        support: which ids take part: those of either list, of the teacher's, of the student's, or of both.
        row_weight: [T] factor of each row; the mean still divides by the number of rows that count. It gets no gradient. A
            zero-weight row adds no loss or gradient, even if its hidden state is NaN.
        reduction: "mean" is the sum over max(1, number of rows that count), 0 for an empty batch; "sum" lets a caller divide by a count
            of its own, such as one over all ranks; "none" gives rows.
        teacher_score: "logits" is the definition. "original" subtracts ``teacher_lse`` from the scores of ids that only the student's
            list holds, which reproduces a mixture of logits and log-probabilities that other results were obtained with; for comparison
            only.
        teacher_lse: [T] the teacher's log-sum-exp; used only, and needed, with "original".

    Raises:
        ValueError: on wrong shapes, dtypes or settings.
    """
    op = "opd_union_kl"
    check_loss(op, tau, divergence, beta, min_support)
    check_choice(op, "support", support, SUPPORTS)
    check_choice(op, "reduction", reduction, REDUCTIONS)
    check_choice(op, "teacher_score", teacher_score, TEACHER_SCORES)
    sizes = check_shapes(
        op,
        hidden=(hidden, "T H"),
        weight=(weight, "V H"),
        student_ids=(student_ids, "T Ks"),
        teacher_ids=(teacher_ids, "T Kt"),
        teacher_scores=(teacher_scores, "T Ks+Kt"),
        row_weight=(row_weight, "T"),
        teacher_lse=(teacher_lse, "T"),
    )
    if sizes["Ks+Kt"] != sizes["Ks"] + sizes["Kt"]:
        slots = f"Ks + Kt = {sizes['Ks']} + {sizes['Kt']}"
        raise ValueError(f"{op}: teacher_scores must have a column for each slot, {slots}, got {list(teacher_scores.shape)}")
    check_floating(op, hidden=hidden, weight=weight, teacher_scores=teacher_scores, row_weight=row_weight, teacher_lse=teacher_lse)
    check_ids(op, student_ids=student_ids, teacher_ids=teacher_ids)
    if (teacher_score == "original") != (teacher_lse is not None):
        raise ValueError(f"{op}: teacher_score='original' needs teacher_lse, and 'logits' does not take it")
    wide = reference.wide_dtype(hidden, weight, teacher_scores)
    unfit = "float64 inputs" if wide == torch.float64 else unfit_slots(sizes["Ks+Kt"], MOST_UNION)
    if resolve_backend(backend, op, hidden, unfit=unfit) == "triton":
        settings = Settings(support, min_support, tau, divergence, beta)
        lse = None if teacher_lse is None else teacher_lse.detach()
        rows, count = SparseUnionKL.apply(*recorded(hidden, weight), student_ids, teacher_ids, teacher_scores.detach(), lse, settings)
        valid = count >= min_support
        return UnionKL(reduce_rows(rows, valid, row_weight, reduction), rows.detach(), valid, count)

    with torch.no_grad():
        scores = teacher_scores.to(wide)
        shared = None if support == "union" and teacher_lse is None else reference.member(student_ids, teacher_ids)
        if teacher_lse is not None and shared is not None:
            of_student, of_teacher = scores.split([sizes["Ks"], sizes["Kt"]], dim=1)
            scores = torch.cat([torch.where(shared, of_student, of_student - teacher_lse[:, None]), of_teacher], dim=1)
        ids = _support_ids(student_ids, teacher_ids, support, shared)
        # Slots the teacher cannot see leave before repeats are removed: the same id may be seen in a later slot.
        ids, count = reference.unique_ids(ids.masked_fill(~scores.isfinite(), -1))
        valid = count >= min_support
        ids = ids.masked_fill(~valid[:, None], -1)
    student_scores = gather_linear(hidden, weight, ids, backend="torch")
    rows = union_kl(scores, student_scores, ids, tau=tau, divergence=divergence, beta=beta, min_support=min_support, backend="torch").rows
    return UnionKL(reduce_rows(rows, valid, row_weight, reduction), rows.detach(), valid, count)


def _support_ids(student_ids: torch.Tensor, teacher_ids: torch.Tensor, support: str, shared: torch.Tensor | None) -> torch.Tensor:
    """Both lists in slots [T, Ks + Kt] int32, −1 where a slot's id is not in the support.

    ``shared`` [T, Ks] marks the student's ids that the teacher has too; "union" does not need it.
    """
    student_ids, teacher_ids = narrowed(student_ids), narrowed(teacher_ids)
    if shared is not None and support in ("teacher", "intersection"):
        student_ids = student_ids.masked_fill(~shared, -1)
    if support in ("student", "intersection"):
        teacher_ids = teacher_ids.masked_fill(~reference.member(teacher_ids, student_ids), -1)
    return torch.cat([student_ids, teacher_ids], dim=1)
