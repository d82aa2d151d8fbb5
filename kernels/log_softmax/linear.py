"""``linear_log_softmax``: the log-softmax of a linear layer's outputs from its input, in row chunks.

The arithmetic of a chunk is in ``op``. A chunk's logits are made again for the gradient and turned into
dL/dlogits in place, so that nothing of size V outlives a chunk.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch

from arkfast.kernels.common.backend import Backend, resolve_backend
from arkfast.kernels.common.checks import check_count, check_flag, check_floating, check_ids, check_shapes, check_temperature
from arkfast.kernels.common.chunks import rows_within
from arkfast.kernels.common.linear_chunks import ChunkedLinear
from arkfast.kernels.common.precision import without_autocast
from arkfast.kernels.common.ranges import checked_ranges
from arkfast.kernels.common.recording import first_order
from arkfast.kernels.log_softmax.op import RowStats, row_grad, row_stats, unfit
from arkfast.kernels.row_topk.reference import blocked_columns

CHUNK_ELEMENTS_CPU, CHUNK_ELEMENTS_GPU = 1 << 25, 1 << 26
"""Logits that exist at once by default: 128 MB in float32 on a CPU; on a GPU 256 MB and half of that for bfloat16 gradients, 441 rows of a
152k vocabulary, below which a product would be bound by reading the weight."""


def default_rows(width: int, device: torch.device) -> int:
    """Rows of a chunk of logits with ``width`` columns: a function of the layer, never of how many rows there are."""
    elements = CHUNK_ELEMENTS_GPU if device.type == "cuda" else CHUNK_ELEMENTS_CPU
    return rows_within(elements, width, most=1 << 13)


class _LinearLogSoftmax(torch.autograd.Function):
    """(log softmax(hidden @ weight.T / τ) at ids, log-sum-exp, entropy); the backward computes each chunk's logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        ids: torch.Tensor,
        tau: float,
        dead: torch.Tensor | None,
        ranges: torch.Tensor | None,
        rows: int,
        need_entropy: bool,
        chosen: str,
    ) -> tuple[torch.Tensor | None, ...]:
        linear = ChunkedLinear(hidden, weight, rows, fast=chosen == "triton")
        with without_autocast(hidden):
            parts = [
                row_stats(linear.logits(s), ids[s], tau=tau, dead=dead, ranges=_part(ranges, s), need_entropy=need_entropy, chosen=chosen)
                for s in linear.spans()
            ]
        stats = [None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)]
        ctx.save_for_backward(hidden, weight, ids, dead, ranges, *stats)
        ctx.tau, ctx.rows, ctx.chosen = tau, rows, chosen
        ctx.set_materialize_grads(False)
        return tuple(stats)

    @staticmethod
    @first_order("linear_log_softmax")
    def backward(
        ctx: Any, d_logp: torch.Tensor | None, d_lse: torch.Tensor | None, d_entropy: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, ids, dead, ranges, logp, lse, entropy = ctx.saved_tensors
        linear = ChunkedLinear(hidden, weight, ctx.rows, fast=ctx.chosen == "triton", grads=ctx.needs_input_grad[:2])
        with without_autocast(hidden):
            for s in linear.spans():
                logits = linear.logits(s)
                out = linear.d_logits_buffer(s, logits)
                grads = _part(d_logp, s), _part(d_lse, s), _part(d_entropy, s)
                part = RowStats(logp[s], lse[s], _part(entropy, s))
                settings = {"tau": ctx.tau, "dead": dead, "ranges": _part(ranges, s), "chosen": ctx.chosen}
                linear.collect(s, *row_grad(grads, logits, part, ids[s], out, **settings))
        d_hidden, d_weight = linear.gradients()
        return (
            None if d_hidden is None else d_hidden.to(hidden.dtype),
            None if d_weight is None else d_weight.to(weight.dtype),
            *(None,) * 7,
        )


def _part(x: torch.Tensor | None, span: slice) -> torch.Tensor | None:
    return None if x is None else x[span]


def linear_stats(
    op: str,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    ids: torch.Tensor,
    *,
    tau: float,
    blocked: torch.Tensor | None,
    ranges: torch.Tensor | None,
    need_entropy: bool,
    chunk_rows: int | None,
    backend: str,
) -> RowStats:
    """What a public function of the name ``op`` has in common with ``linear_log_softmax``: checks of all but the ids' shape, and RowStats
    with gradients to hidden [T, H] and weight [V, H]."""
    check_temperature(op, tau)
    sizes = check_shapes(
        op, hidden=(hidden, "T H"), weight=(weight, "V H"), ids=(ids, "T U"), blocked=(blocked, "b"), ranges=(ranges, "T R 2")
    )
    check_floating(op, hidden=hidden, weight=weight)
    check_ids(op, ids=ids, blocked=blocked)
    ranges = checked_ranges(op, ranges)
    if chunk_rows is not None:
        check_count(op, "chunk_rows", chunk_rows)
    if sizes["V"] == 0:
        raise ValueError(f"{op}: weight must have at least one row, got shape {list(weight.shape)}")
    chosen = resolve_backend(backend, op, hidden, unfit=unfit(ids, hidden, weight))
    dead = blocked_columns(sizes["V"], blocked, None, hidden.device)
    rows = chunk_rows or default_rows(sizes["V"], hidden.device)
    return RowStats(*_LinearLogSoftmax.apply(hidden, weight, ids, tau, dead, ranges, rows, need_entropy, chosen))


@overload
def linear_log_softmax(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    ids: torch.Tensor,
    *,
    tau: float = ...,
    blocked: torch.Tensor | None = ...,
    ranges: torch.Tensor | None = ...,
    return_lse: Literal[False] = ...,
    chunk_rows: int | None = ...,
    backend: Backend = ...,
) -> torch.Tensor: ...


@overload
def linear_log_softmax(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    ids: torch.Tensor,
    *,
    tau: float = ...,
    blocked: torch.Tensor | None = ...,
    ranges: torch.Tensor | None = ...,
    return_lse: Literal[True],
    chunk_rows: int | None = ...,
    backend: Backend = ...,
) -> tuple[torch.Tensor, torch.Tensor]: ...


def linear_log_softmax(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    ids: torch.Tensor,
    *,
    tau: float = 1.0,
    blocked: torch.Tensor | None = None,
    ranges: torch.Tensor | None = None,
    return_lse: bool = False,
    chunk_rows: int | None = None,
    backend: Backend = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """log softmax(hidden @ weight.T / τ) at chosen ids, with gradients to ``hidden`` and ``weight``; cross-entropy is minus its value at
    the target.

    Logits and sums are in float32 or wider. The logits exist for ``chunk_rows`` rows at a time and again in the backward; gradients of
    gradients are not available. With bfloat16 inputs on a GPU dL/dlogits is rounded to bfloat16 once, before the products that give the
    gradients.

    Args:
        hidden: [T, H] bfloat16, float16, float32 or float64.
        weight: [V, H], any of the same dtypes.
        ids: [T, U] int32 or int64 in [0, V); a negative id gives 0 and no gradient.
        tau: temperature.
        blocked: [b] int32 ids that have probability 0; a blocked id among ``ids`` gives −inf and no gradient. Ids outside [0, V) have no
            effect.
        ranges: [T, R, 2] int32 half-open ranges [start, stop) of each row: an id in none of them counts as blocked in that row, and one
            that is blocked stays so inside them. A row that is left without any id gives the log-sum-exp −inf and NaN.
        return_lse: also return the log-sum-exp of the logits / τ over the ids that are not blocked, [T], with gradient.
        chunk_rows: rows of logits that exist at once; None takes what 128 MB of float32 hold (256 MB on a GPU).

    Returns:
        [T, U] log-probabilities in float32 (float64 when an input is float64), or (log-probabilities, lse).

    Raises:
        ValueError: on wrong shapes, dtypes, tau or backend.
    """
    op = "linear_log_softmax"
    check_flag(op, return_lse=return_lse)
    stats = linear_stats(
        op,
        hidden,
        weight,
        ids,
        tau=tau,
        blocked=blocked,
        ranges=ranges,
        need_entropy=False,
        chunk_rows=chunk_rows,
        backend=backend,
    )
    return (stats.logp, stats.lse) if return_lse else stats.logp
