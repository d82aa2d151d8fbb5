"""The autograd function of the fused loss: one kernel a position, the scores' gradient known when the loss is.

The forward leaves that gradient and the ids that it belongs to, 8 bytes a slot. The backward scales it by the upstream gradient of each row
and sums rows of the hidden states for the weight, then rows of the weight for the hidden states. A hidden gradient made in the forward,
from rows that lie in the caches there, would have to be kept in float32, since it is yet to be scaled: 4 H bytes a position, written and
read again, where the whole loss is held to 5.5 KB.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from arkfast.kernels.common.recording import first_order
from arkfast.kernels.gather_linear.op import launch_hidden_grad
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
            need_grad=need_hidden or need_weight,
        )
        ctx.save_for_backward(out.grad, out.ids, hidden if need_weight else None, weight if need_hidden else None, out.support)
        ctx.num_rows, ctx.dtypes, ctx.min_support = weight.shape[0], (hidden.dtype, weight.dtype), settings.min_support
        ctx.mark_non_differentiable(out.support)
        return out.rows, out.support

    @staticmethod
    @first_order("opd_union_kl")
    def backward(ctx: Any, grad_rows: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad, ids, hidden, weight, support = ctx.saved_tensors
        # Mask, don't multiply: NaN · 0 is NaN. The upstream gradient of a row that does not count may be NaN, and so may the gradients of
        # a row that the upstream gradient leaves out with 0.
        scale = grad_rows.masked_fill(support < ctx.min_support, 0.0)
        d_hidden = d_weight = None
        # The weight's gradient first: what its sort needs has been given back when the hidden gradient is made.
        if hidden is not None:
            scaled = (grad * scale[:, None]).masked_fill_((scale == 0)[:, None], 0.0)
            d_weight = sparse_weight_grad(scaled, ids, hidden, ctx.num_rows, dtype=ctx.dtypes[1], backend="triton")
            del scaled
        if weight is not None:
            d_hidden = launch_hidden_grad(grad, weight, ids, ctx.dtypes[0], scale)
        return d_hidden, d_weight, *(None,) * 5
