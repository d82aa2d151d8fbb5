"""``row_log_softmax``: checks, launches, autograd and the choice of backend for one buffer of logits.

The logits exist already. Where they come from a linear layer, ``linear`` makes them chunk by chunk and calls what is here.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch

from arkfast.kernels.common.backend import Backend, resolve_backend
from arkfast.kernels.common.checks import check_flag, check_floating, check_ids, check_shapes, check_temperature
from arkfast.kernels.common.launch import Config, Rule, on_its_device, pick
from arkfast.kernels.common.ranges import checked_ranges, left_out
from arkfast.kernels.common.recording import first_order
from arkfast.kernels.common.strides import block_of
from arkfast.kernels.log_softmax import reference
from arkfast.kernels.row_topk.reference import blocked_columns

MAX_IDS = 128
"""Ids a row that the backward kernel compares with each other at once."""

# Width is V. 16 elements a thread: the block itself and the running maxima and sums of its two or four lanes stay in registers (at most 55
# on 9.0).
TABLE = (Rule(config=Config(num_warps=4, num_stages=2, blocks={"BLOCK": 2048})),)


class RowStats(NamedTuple):
    """What one pass over rows of logits gives; float32 or wider."""

    logp: torch.Tensor
    """[n, U] log softmax(z/τ) at the ids; 0 where an id is negative."""
    lse: torch.Tensor
    """[n] log-sum-exp of z/τ."""
    entropy: torch.Tensor | None
    """[n] −Σ p log p; None unless asked for."""


def unfit(ids: torch.Tensor, *tensors: torch.Tensor) -> str | None:
    """Why the kernels do not take such ids [T, U] and floating-point tensors; None when they do."""
    if any(x.dtype == torch.float64 for x in tensors):
        return "float64 inputs"
    return f"more than {MAX_IDS} ids a row" if ids.shape[1] > MAX_IDS else None


@on_its_device
def row_stats(
    logits: torch.Tensor,
    ids: torch.Tensor,
    *,
    tau: float,
    dead: torch.Tensor | None,
    ranges: torch.Tensor | None = None,
    need_entropy: bool,
    chosen: str,
) -> RowStats:
    """One pass over logits [n, V]; ids [m, U] may have fewer rows, logits past them are not looked at. ``chosen`` is a backend's name.

    ``dead`` [V] bool and what lies outside ``ranges`` [m, R, 2] (contiguous int32) have no probability.
    """
    if chosen == "torch":
        out = left_out(logits.shape[1], dead, ranges)
        return RowStats(*reference.forward(logits[: ids.shape[0]], ids.long(), tau, out, need_entropy))
    from arkfast.kernels.log_softmax import kernel

    (rows, slots), width = ids.shape, logits.shape[1]

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device=logits.device)

    stats = RowStats(empty(rows, slots), empty(rows), empty(rows) if need_entropy else None)
    if rows:
        config = pick(TABLE, device=logits.device, width=width, dtype=logits.dtype)
        kernel.row_log_softmax_fwd[(rows,)](
            logits,
            dead,
            ranges,
            ids.contiguous(),
            stats.logp,
            stats.lse,
            stats.entropy,
            logits.stride(0),
            width,
            slots,
            1.0 / tau,
            HAS_DEAD=dead is not None,
            RANGES=0 if ranges is None else ranges.shape[1],
            HAS_ENTROPY=need_entropy,
            BLOCK_U=block_of(slots, least=16, most=64),
            **config.kwargs(),
        )
    return stats


@on_its_device
def row_grad(
    upstream: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None],
    logits: torch.Tensor,
    stats: RowStats,
    ids: torch.Tensor,
    out: torch.Tensor,
    *,
    tau: float,
    dead: torch.Tensor | None,
    ranges: torch.Tensor | None = None,
    chosen: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dL/dlogits [n, V] from the gradients of (logp [m, U], lse [m], entropy [m]), each None for zeros; m ≤ n rows are looked at.

    ``out`` may be ``logits``; a kernel writes its first m rows, the torch backend returns a tensor of m rows of its own. The second result,
    [m] bool, marks rows to which nothing comes upstream: exact zeros, whatever their logits are.
    """
    rows, slots = ids.shape
    grad, grad_lse, grad_entropy = upstream
    grad = torch.zeros_like(stats.logp) if grad is None else reference.live_grad(grad, stats.logp, ids)
    idle = reference.idle_rows(grad, grad_lse, grad_entropy)
    if chosen == "torch":
        absent = left_out(logits.shape[1], dead, ranges)
        d_logits = reference.backward(
            grad, grad_lse, grad_entropy, idle, logits[:rows], stats.lse, stats.entropy, ids.long(), tau, absent
        )  # fmt: skip
        return d_logits, idle
    if rows == 0:
        return out, idle
    from arkfast.kernels.log_softmax import kernel

    width, has_entropy = logits.shape[1], grad_entropy is not None
    share = -grad.sum(1) if grad_lse is None else grad_lse - grad.sum(1)
    entropy = stats.entropy if has_entropy else None
    grad_entropy = None if grad_entropy is None else grad_entropy.float().contiguous()
    config = pick(TABLE, device=logits.device, width=width, dtype=logits.dtype)
    flags = {"HAS_ENTROPY": has_entropy}
    kernel.row_log_softmax_bwd[(rows,)](
        logits,
        dead,
        ranges,
        stats.lse,
        share,
        idle,
        entropy,
        grad_entropy,
        out,
        logits.stride(0),
        out.stride(0),
        width,
        1.0 / tau,
        HAS_DEAD=dead is not None,
        RANGES=0 if ranges is None else ranges.shape[1],
        **flags,
        **config.kwargs(),
    )
    if slots:
        block = block_of(slots, least=16, most=MAX_IDS)
        kernel.row_log_softmax_bwd_ids[(rows,)](
            ids.contiguous(),
            stats.logp,
            grad.contiguous(),
            share,
            idle,
            entropy,
            grad_entropy,
            out,
            out.stride(0),
            width,
            slots,
            1.0 / tau,
            **flags,
            BLOCK_U=block,
            num_warps=4 if block < MAX_IDS else 8,
        )
    return out, idle


class _RowLogSoftmax(torch.autograd.Function):
    """(log softmax(logits / τ) at ids, log-sum-exp, entropy) of logits that the caller keeps."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        ids: torch.Tensor,
        tau: float,
        dead: torch.Tensor | None,
        ranges: torch.Tensor | None,
        need_entropy: bool,
        chosen: str,
    ) -> tuple[torch.Tensor | None, ...]:
        stats = row_stats(logits, ids, tau=tau, dead=dead, ranges=ranges, need_entropy=need_entropy, chosen=chosen)
        ctx.save_for_backward(logits, ids, dead, ranges, *stats)
        ctx.settings = {"tau": tau, "chosen": chosen}
        ctx.set_materialize_grads(False)
        return tuple(stats)

    @staticmethod
    @first_order("row_log_softmax")
    def backward(
        ctx: Any, d_logp: torch.Tensor | None, d_lse: torch.Tensor | None, d_entropy: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        logits, ids, dead, ranges, *stats = ctx.saved_tensors
        out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        d_logits, _ = row_grad((d_logp, d_lse, d_entropy), logits, RowStats(*stats), ids, out, dead=dead, ranges=ranges, **ctx.settings)
        return d_logits.to(logits.dtype), *(None,) * 6


@overload
def row_log_softmax(
    logits: torch.Tensor,
    ids: torch.Tensor,
    *,
    tau: float = ...,
    blocked: torch.Tensor | None = ...,
    ranges: torch.Tensor | None = ...,
    return_lse: Literal[False] = ...,
    backend: Backend = ...,
) -> torch.Tensor: ...


@overload
def row_log_softmax(
    logits: torch.Tensor,
    ids: torch.Tensor,
    *,
    tau: float = ...,
    blocked: torch.Tensor | None = ...,
    ranges: torch.Tensor | None = ...,
    return_lse: Literal[True],
    backend: Backend = ...,
) -> tuple[torch.Tensor, torch.Tensor]: ...


def row_log_softmax(
    logits: torch.Tensor,
    ids: torch.Tensor,
    *,
    tau: float = 1.0,
    blocked: torch.Tensor | None = None,
    ranges: torch.Tensor | None = None,
    return_lse: bool = False,
    backend: Backend = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """log softmax(logits / τ) at chosen ids, with gradient; the rows are read once and nothing of their size is made.

    Args:
        logits: [T, V] bfloat16, float16, float32 or float64. Sums are in float32 or wider.
        ids: [T, U] int32 or int64 in [0, V); a negative id gives 0 and no gradient.
        tau: temperature.
        blocked: [b] int32 ids that have probability 0; a blocked id among ``ids`` gives −inf and no gradient. Ids outside [0, V) have no
            effect.
        ranges: [T, R, 2] int32 half-open ranges [start, stop) of each row: an id in none of them counts as blocked in that row, and one
            that is blocked stays so inside them. A row that is left without any id gives the log-sum-exp −inf and NaN.
        return_lse: also return the log-sum-exp of the logits / τ over the ids that are not blocked, [T], with gradient.

    Returns:
        [T, U] log-probabilities in float32 (float64 for float64 logits), or (log-probabilities, lse).

    Raises:
        ValueError: on wrong shapes, dtypes, tau or backend.
    """
    op = "row_log_softmax"
    check_flag(op, return_lse=return_lse)
    check_temperature(op, tau)
    sizes = check_shapes(op, logits=(logits, "T V"), ids=(ids, "T U"), blocked=(blocked, "b"), ranges=(ranges, "T R 2"))
    check_floating(op, logits=logits)
    check_ids(op, ids=ids, blocked=blocked)
    ranges = checked_ranges(op, ranges)
    if sizes["V"] == 0:
        raise ValueError(f"{op}: logits must have at least one column, got shape {list(logits.shape)}")
    strided = sizes["V"] > 1 and logits.stride(1) != 1
    chosen = resolve_backend(
        backend, op, logits, unfit="logits whose columns are not neighbours in memory" if strided else unfit(ids, logits)
    )
    dead = blocked_columns(sizes["V"], blocked, None, logits.device)
    logp, lse, _ = _RowLogSoftmax.apply(logits, ids, tau, dead, ranges, False, chosen)
    return (logp, lse) if return_lse else logp
