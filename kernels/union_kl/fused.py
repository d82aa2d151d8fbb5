"""The autograd function of the fused loss: one kernel a position, gradients known when the loss is.

The forward leaves the gradient to the scores, the ids they belong to and the hidden gradient; the backward scales them by the upstream
gradient of each row and sums the weight's rows. The weight itself is not needed again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from arkfast.kernels.common.recording import first_order
from arkfast.kernels.sparse_grad import sparse_weight_grad
from arkfast.kernels.union_kl.launcher import launch_sparse


class Settings(NamedTuple):
    """The kernel's checked arguments that are not tensors."""

    support: str
    min_support: int
    tau: float
    divergence: str
    beta: float


class SparseUnionKL(torch.autograd.Function):
    """(rows [T] with gradient to hidden and weight, support [T]) of ``launcher.launch_sparse``."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        student_ids: torch.Tensor,
        teacher_ids: torch.Tensor,
        teacher_scores: torch.Tensor,
        teacher_lse: torch.Tensor | None,
        settings: Settings,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        out = launch_sparse(
            hidden,
            weight,
            student_ids,
            teacher_ids,
            teacher_scores,
            teacher_lse,
            **settings._asdict(),
            need_grad=need_weight,
            need_hidden=need_hidden,
        )
        ctx.save_for_backward(out.d_hidden, out.grad, out.ids, hidden if need_weight else None, out.support)
        ctx.num_rows, ctx.dtypes, ctx.min_support = weight.shape[0], (hidden.dtype, weight.dtype), settings.min_support
        ctx.mark_non_differentiable(out.support)
        return out.rows, out.support

    @staticmethod
    @first_order("opd_union_kl")
    def backward(ctx: Any, grad_rows: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        d_hidden, grad, ids, hidden, support = ctx.saved_tensors
        # Mask, don't multiply: NaN · 0 is NaN. The upstream gradient of a row that does not count may be NaN, and so may the gradients of
        # a row that the upstream gradient leaves out with 0.
        scale = grad_rows.masked_fill(support < ctx.min_support, 0.0)[:, None]
        left_out, d_weight = scale == 0, None
        if d_hidden is not None:
            # Rounded where it is written: the product in float32 would be as large again as what was saved.
            d_hidden = torch.mul(d_hidden, scale, out=torch.empty_like(d_hidden, dtype=ctx.dtypes[0])).masked_fill_(left_out, 0.0)
        if grad is not None:
            grad = (grad * scale).masked_fill_(left_out, 0.0)
            d_weight = sparse_weight_grad(grad, ids, hidden, ctx.num_rows, dtype=ctx.dtypes[1], backend="triton")
        return d_hidden, d_weight, *(None,) * 5
