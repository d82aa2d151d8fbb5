"""``union_topk_kl``: the loss on two logit tensors, as one operator that torch.compile takes whole.

The operator ``arkfast::union_topk_kl`` gives rows;
reductions are ordinary torch around it.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from arkfast.kernels.common.backend import Backend, resolve_backend
from arkfast.kernels.common.checks import check_choice, check_count, check_floating, check_ids, check_temperature, check_tensor
from arkfast.kernels.common.launch import device_refusal
from arkfast.kernels.common.ranges import MOST_RANGES
from arkfast.kernels.common.recording import refuse_second_gradient
from arkfast.kernels.row_topk import topk_lse
from arkfast.kernels.union_kl import reference
from arkfast.kernels.union_kl.launcher import MOST_UNION, launch_rows, launch_scatter, launch_union, unfit_slots
from arkfast.kernels.union_kl.loss import REDUCTIONS, Reduction, reduce_rows

MIN_SUPPORT = 2
"""Ids of a position's union: renormalised to itself a single one says nothing."""


# Declared piece by piece: ``torch.library.custom_op`` would import torch.compile's machinery, seconds of it, at the first call.
torch.library.define(
    "arkfast::union_topk_kl",
    "(Tensor student, Tensor teacher, int k, float tau, Tensor? blocked, Tensor? ranges, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "arkfast::union_topk_kl_backward", "(Tensor grad, Tensor scale, Tensor ids, SymInt width, ScalarType dtype, str backend) -> Tensor"
)


@torch.library.impl("arkfast::union_topk_kl", "default")
def _rows(
    student: torch.Tensor,
    teacher: torch.Tensor,
    k: int,
    tau: float,
    blocked: torch.Tensor | None,
    ranges: torch.Tensor | None,
    backend: Backend,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """[T, V] twice → rows [T], support [T] int32, ids [T, 2k] int32 (−1 where empty), gradient to the student's scores [T, 2k]."""
    dtype = reference.wide_dtype(student, teacher)
    unfit = "float64 inputs" if dtype == torch.float64 else unfit_slots(2 * k, MOST_UNION)
    chosen = resolve_backend(backend, "union_topk_kl", student, unfit=unfit)
    student_ids = topk_lse(student, k, blocked=blocked, ranges=ranges, backend=backend).ids
    top = topk_lse(teacher, k, blocked=blocked, ranges=ranges, gather_ids=student_ids, backend=backend)
    assert top.gathered is not None
    scores = torch.cat([top.gathered, top.values], dim=1)
    student_ids, teacher_ids = torch.cat([student_ids, top.ids], dim=1).masked_fill_(~scores.isfinite(), -1).split(k, dim=1)
    if chosen == "triton":
        ids, _ = launch_union(student_ids, teacher_ids)
        rows, support, grad = launch_rows(
            student, scores, ids, tail=False, min_support=MIN_SUPPORT, tau=tau, divergence="forward_kl", beta=0.5, grad=True, gather=True
        )
        assert grad is not None
        return rows, support, ids, grad
    ids, support = reference.unique_ids(torch.cat([student_ids, teacher_ids], dim=1))
    student_scores = student.gather(1, ids.clamp_min(0).long())
    rows, grad = reference.divergence_rows(
        scores, student_scores, ids >= 0, support >= MIN_SUPPORT, tau=tau, divergence="forward_kl", beta=0.5
    )  # fmt: skip
    return rows, support, ids, grad


@torch.library.register_fake("arkfast::union_topk_kl")
def _(
    student: torch.Tensor,
    teacher: torch.Tensor,
    k: int,
    tau: float,
    blocked: torch.Tensor | None,
    ranges: torch.Tensor | None,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    positions, dtype = student.shape[0], reference.wide_dtype(student, teacher)
    return (
        student.new_empty(positions, dtype=dtype),
        student.new_empty(positions, dtype=torch.int32),
        student.new_empty(positions, 2 * k, dtype=torch.int32),
        student.new_empty(positions, 2 * k, dtype=dtype),
    )


@torch.library.impl("arkfast::union_topk_kl_backward", "default")
def _logit_grad(grad: torch.Tensor, scale: torch.Tensor, ids: torch.Tensor, width: int, dtype: torch.dtype, backend: str) -> torch.Tensor:
    """scale [T] · grad [T, U] put at ids [T, U] of [T, width] zeros; a scale of 0 leaves a row out, whose gradient may be NaN. An operator,
    so that a second gradient can be refused."""
    by_kernel = backend == "triton" or (backend == "auto" and grad.is_cuda and device_refusal(grad.device) is None)
    if by_kernel and grad.dtype == torch.float32:
        return launch_scatter(grad, scale, ids, width, dtype)
    out = torch.zeros(grad.shape[0], width, dtype=grad.dtype, device=grad.device)
    # Added, not put: empty slots all point to id 0 and add their 0 there. Ids differ within a row, so no sum has an order.
    empty = (ids < 0) | (scale == 0)[:, None]
    return out.scatter_add_(1, ids.clamp_min(0).long(), (grad * scale[:, None]).masked_fill_(empty, 0.0)).to(dtype)


@torch.library.register_fake("arkfast::union_topk_kl_backward")
def _(grad: torch.Tensor, scale: torch.Tensor, ids: torch.Tensor, width: int, dtype: torch.dtype, backend: str) -> torch.Tensor:
    return grad.new_empty(grad.shape[0], width, dtype=dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    student, *_, backend = inputs
    _, support, ids, grad = output
    ctx.mark_non_differentiable(support, ids, grad)
    ctx.save_for_backward(ids, grad)
    ctx.width, ctx.dtype, ctx.backend = student.shape[1], student.dtype, backend


def _backward(ctx: Any, grad_rows: torch.Tensor, *_: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    refuse_second_gradient("union_topk_kl")
    ids, grad = ctx.saved_tensors
    return torch.ops.arkfast.union_topk_kl_backward(grad, grad_rows, ids, ctx.width, ctx.dtype, ctx.backend), *(None,) * 6


def _refuse(ctx: Any, grad: torch.Tensor) -> None:
    raise RuntimeError("union_topk_kl: gradients of gradients are not available")


torch.library.register_autograd("arkfast::union_topk_kl", _backward, setup_context=_setup)
torch.library.register_autograd("arkfast::union_topk_kl_backward", _refuse)


def union_topk_kl(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    k: int = 32,
    *,
    tau: float = 1.0,
    blocked: torch.Tensor | None = None,
    ranges: torch.Tensor | None = None,
    reduction: Reduction = "mean",
    backend: Backend = "auto",
) -> torch.Tensor:
    """τ² · KL(p‖q) on the union of both models' top-k, from logits over one vocabulary: the simplest drop-in.

    Equal to ``opd_union_kl`` with the student's top-k taken from these logits; that function needs no [T, V] student logits and is the
    one to train with. Gradients of gradients are not available. Logits that are cut along the vocabulary (tensor parallel) are not
    supported: gather them first.

    Args:
        student_logits: [..., V] with gradient.
        teacher_logits: [..., V] of the same shape; no gradient. −inf or NaN takes an id out of the union.
        k: ids of each model; may exceed V.
        tau: temperature.
        blocked: [b] int32 ids that take no part.
        ranges: [..., R, 2] int32 half-open ranges [start, stop) of each position: an id in none of them takes no part there, nor does one
            that is blocked inside them. A position that is left without two ids does not count.
        reduction: over positions whose union has at least 2 ids: "mean", "sum", or "none" for a tensor of shape [...].

    Returns:
        A scalar, or [...] for "none", in float32 (float64 for float64 logits).

    Raises:
        ValueError: on wrong shapes, dtypes or settings.
    """
    op = "union_topk_kl"
    check_choice(op, "backend", backend, ("auto", "triton", "torch"))
    check_count(op, "k", k)
    check_temperature(op, tau)
    check_choice(op, "reduction", reduction, REDUCTIONS)
    for name, logits in (("student_logits", student_logits), ("teacher_logits", teacher_logits)):
        check_tensor(op, name, logits, "..., V")
        if logits.dim() == 0 or logits.shape[-1] == 0:
            raise ValueError(f"{op}: {name} must be a torch.Tensor of shape [..., V] with at least one id, got {list(logits.shape)}")
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"{op}: teacher_logits must have the shape of student_logits, {list(student_logits.shape)}, got {list(teacher_logits.shape)}; "
            "models with different vocabularies need opd_union_kl with mapped ids"
        )
    lead, width = student_logits.shape[:-1], student_logits.shape[-1]
    check_floating(op, student_logits=student_logits, teacher_logits=teacher_logits)
    for name, other in (("teacher_logits", teacher_logits), ("blocked", blocked), ("ranges", ranges)):
        if other is not None:
            check_tensor(op, name, other, {"blocked": "b", "ranges": "..., R, 2"}.get(name, "..., V"))
            here = student_logits.device
            if other.device != here:
                raise ValueError(f"{op}: {name} must be on {here} as student_logits is, got {other.device}; move one of them")
    check_ids(op, blocked=blocked, ranges=ranges)
    if blocked is not None and blocked.dim() != 1:
        raise ValueError(f"{op}: blocked must have shape [b], got {list(blocked.shape)}")
    if ranges is not None:
        # Counted by hand, as everything here: under torch.compile the number of positions may be symbolic.
        if ranges.dim() != len(lead) + 2 or ranges.shape[:-2] != lead or ranges.shape[-1] != 2:
            got = list(ranges.shape)
            raise ValueError(f"{op}: ranges must be a torch.Tensor of shape [..., R, 2] with the logits' leading axes, got {got}")
        if not 1 <= ranges.shape[-2] <= MOST_RANGES:
            raise ValueError(f"{op}: ranges must have 1 to {MOST_RANGES} ranges a position, got {ranges.shape[-2]}")
        ranges = ranges.reshape(math.prod(lead), ranges.shape[-2], 2)
    student = student_logits.reshape(math.prod(lead), width)
    teacher = teacher_logits.detach().reshape(math.prod(lead), width)
    rows, support, _, _ = torch.ops.arkfast.union_topk_kl(student, teacher, k, float(tau), blocked, ranges, backend)
    loss = reduce_rows(rows, support >= MIN_SUPPORT, None, reduction)
    return loss.reshape(lead) if reduction == "none" else loss
