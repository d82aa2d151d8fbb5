"""``gather_linear``: checks, autograd and the choice of backend. Knows that the head's gradient is sparse; knows no loss."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from arkfast.kernels.common.backend import Backend, resolve_backend
from arkfast.kernels.common.checks import check_floating, check_ids, check_shapes
from arkfast.kernels.common.precision import wide_dtype, without_autocast
from arkfast.kernels.gather_linear import reference
from arkfast.kernels.sparse_grad import sparse_weight_grad


class _GatherLinear(torch.autograd.Function):
    """scores[t, u] = weight[ids[t, u]] · hidden[t]; the weight's gradient comes from the same few entries."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight, ids)
        with without_autocast(hidden):
            return reference.scores(hidden, weight, ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        hidden, weight, ids = ctx.saved_tensors
        d_hidden = d_weight = None
        with without_autocast(hidden):
            if ctx.needs_input_grad[0]:
                d_hidden = reference.hidden_grad(grad, weight, ids, hidden).to(hidden.dtype)
            if ctx.needs_input_grad[1]:
                wide = hidden.to(wide_dtype(hidden, weight))
                d_weight = sparse_weight_grad(grad, ids, wide, weight.shape[0]).to(weight.dtype)
        return d_hidden, d_weight, None


def gather_linear(hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, *, backend: Backend = "auto") -> torch.Tensor:
    """scores[t, u] = weight[ids[t, u]] · hidden[t], with gradients to ``hidden`` and ``weight``.

    The weight's gradient is a dense [V, H] tensor, zero outside the gathered rows, summed in a fixed order (``sparse_weight_grad``) in
    float32 or wider and rounded once to the weight's dtype. Gradients of gradients are not available.

    Args:
        hidden: [T, H] bfloat16, float16, float32 or float64.
        weight: [V, H], any of the same dtypes.
        ids: [T, U] int32 or int64 in [0, V); a negative id gives score 0 and no gradient. An id may repeat.

    Returns:
        [T, U] float32 (float64 when an input is float64), accumulated in that dtype.

    Raises:
        ValueError: on wrong shapes, dtypes or backend.
    """
    op = "gather_linear"
    resolve_backend(backend, op)
    check_shapes(op, hidden=(hidden, "T H"), weight=(weight, "V H"), ids=(ids, "T U"))
    check_floating(op, hidden=hidden, weight=weight)
    check_ids(op, ids=ids)
    return _GatherLinear.apply(hidden, weight, ids)
