"""``linear_log_softmax``: checks, chunks, autograd and the choice of backend. The chunk's arithmetic is in ``reference``."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from arkfast.kernels.common.backend import Backend, resolve_backend
from arkfast.kernels.common.checks import check_count, check_floating, check_ids, check_shapes, check_temperature
from arkfast.kernels.common.chunks import rows_within, spans
from arkfast.kernels.common.precision import wide_dtype, without_autocast
from arkfast.kernels.log_softmax import reference
from arkfast.kernels.row_topk.reference import blocked_columns

CHUNK_ELEMENTS = 1 << 25
"""Logits that exist at once by default: 128 MB in float32, about 200 rows of a 152k vocabulary."""


class _LinearLogSoftmax(torch.autograd.Function):
    """(log softmax(hidden @ weight.T / τ) at ids, log-sum-exp); the backward computes each chunk's logits again."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, tau: float, dead: torch.Tensor | None, rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = wide_dtype(hidden, weight)
        wide_weight = weight.to(dtype)
        with without_autocast(hidden):
            parts = [reference.forward(hidden[s].to(dtype), wide_weight, ids[s].long(), tau, dead) for s in spans(hidden.shape[0], rows)]
        logp, lse = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, weight, ids, dead, lse)
        ctx.tau, ctx.rows = tau, rows
        ctx.set_materialize_grads(False)
        return logp, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor | None, grad_lse: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, ids, dead, lse = ctx.saved_tensors
        if grad is None:
            grad = lse.new_zeros(ids.shape)
        wide_weight = weight.to(lse.dtype)
        d_hidden: list[torch.Tensor] = []
        d_weight = torch.zeros_like(wide_weight) if ctx.needs_input_grad[1] else None
        with without_autocast(hidden):
            for s in spans(hidden.shape[0], ctx.rows):
                x = hidden[s].to(lse.dtype)
                logits = reference.scaled_logits(x, wide_weight, ctx.tau, dead)
                chunk_lse = None if grad_lse is None else grad_lse[s]
                d_logits = reference.logits_grad(grad[s], chunk_lse, logits, lse[s], ids[s].long(), ctx.tau)
                if ctx.needs_input_grad[0]:
                    d_hidden.append(d_logits @ wide_weight)
                if d_weight is not None:
                    d_weight.addmm_(d_logits.t(), x)
        return (
            torch.cat(d_hidden).to(hidden.dtype) if d_hidden else None,
            None if d_weight is None else d_weight.to(weight.dtype),
            *(None,) * 4,
        )


def linear_log_softmax(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    ids: torch.Tensor,
    *,
    tau: float = 1.0,
    blocked: torch.Tensor | None = None,
    return_lse: bool = False,
    chunk_rows: int | None = None,
    backend: Backend = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """log softmax(hidden @ weight.T / τ) at chosen ids, with gradients to ``hidden`` and ``weight``; cross-entropy is minus its value at
    the target.

    Products and sums are in float32 or wider. The logits exist for ``chunk_rows`` rows at a time and again in the backward; gradients of
    gradients are not available.

    Args:
        hidden: [T, H] bfloat16, float16, float32 or float64.
        weight: [V, H], any of the same dtypes.
        ids: [T, U] int32 or int64 in [0, V); a negative id gives 0 and no gradient.
        tau: temperature.
        blocked: [b] int32 ids that have probability 0; a blocked id among ``ids`` gives −inf and no gradient. Ids outside [0, V) have no
            effect.
        return_lse: also return the log-sum-exp of the logits / τ over the ids that are not blocked, [T], with gradient.
        chunk_rows: rows of logits that exist at once; None takes what 128 MB of float32 hold.

    Returns:
        [T, U] log-probabilities in float32 (float64 when an input is float64), or (log-probabilities, lse).

    Raises:
        ValueError: on wrong shapes, dtypes, tau or backend.
    """
    op = "linear_log_softmax"
    resolve_backend(backend, op)
    check_temperature(op, tau)
    sizes = check_shapes(op, hidden=(hidden, "T H"), weight=(weight, "V H"), ids=(ids, "T U"), blocked=(blocked, "b"))
    check_floating(op, hidden=hidden, weight=weight)
    check_ids(op, ids=ids, blocked=blocked)
    if chunk_rows is not None:
        check_count(op, "chunk_rows", chunk_rows)
    if sizes["V"] == 0:
        raise ValueError(f"{op}: weight must have at least one row, got shape {list(weight.shape)}")
    dead = blocked_columns(sizes["V"], blocked, None, hidden.device)
    rows = chunk_rows or rows_within(CHUNK_ELEMENTS, sizes["V"], most=1 << 13)
    logp, lse = _LinearLogSoftmax.apply(hidden, weight, ids, tau, dead, rows)
    return (logp, lse) if return_lse else logp
