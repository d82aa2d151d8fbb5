"""``linear_kl``: checks, chunks of two linear layers, launches, autograd and reductions.

A scalar loss has its gradient ready when its forward is: the row kernel turns a chunk's student logits into dL/dlogits while the chunk is
there, and the backward only scales. Rows ("none") learn their factors in the backward, which makes the chunks again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from arkfast.kernels.common.backend import Backend, resolve_backend
from arkfast.kernels.common.checks import (
    check_beta,
    check_choice,
    check_count,
    check_floating,
    check_ids,
    check_shapes,
    check_temperature,
)
from arkfast.kernels.common.chunks import rows_within
from arkfast.kernels.common.launch import Config, Rule, on_its_device, pick
from arkfast.kernels.common.linear_chunks import ChunkedLinear
from arkfast.kernels.common.precision import without_autocast
from arkfast.kernels.common.ranges import checked_ranges, left_out
from arkfast.kernels.common.recording import first_order, recorded
from arkfast.kernels.linear_kl import reference
from arkfast.kernels.row_topk.reference import blocked_columns

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
Reduction = Literal["mean", "sum", "none"]
REDUCTIONS = ("mean", "sum", "none")

CHUNK_ELEMENTS_CPU, CHUNK_ELEMENTS_GPU = 1 << 22, 1 << 26
"""Logits of one model that exist at once by default. A CPU's reference has about ten temporaries of that size, 16 MB each; a GPU has both
models' logits at 256 MB and half of that for bfloat16 gradients, 441 rows of a 152k vocabulary."""

# Width is V. Two rows and two running sums at 8 elements a thread: at most 80 registers, so that six programs share a multiprocessor.
TABLE = (Rule(config=Config(num_warps=4, num_stages=1, blocks={"BLOCK": 1024})),)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Arguments of a call that are not tensors."""

    tau: float
    divergence: str
    beta: float
    reduction: str
    rows: int
    """Rows of a chunk."""
    chosen: str
    """The backend."""


@on_its_device
def row_pass(
    student: torch.Tensor,
    teacher: torch.Tensor,
    dead: torch.Tensor | None,
    factor: torch.Tensor | None,
    rows: torch.Tensor,
    out: torch.Tensor | None,
    settings: Settings,
    ranges: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Writes ``rows`` [m] = τ² D of the first m rows of both logits [n, V]; with ``factor`` [m] also returns factor · τ² · dD/dz_S.

    ``out`` [n, V] is where a kernel puts that gradient, and may be ``student``; the torch backend returns m rows of its own. A row whose
    factor is 0 gets zeros whatever its logits are. ``dead`` [V] bool and what lies outside ``ranges`` [m, R, 2] (contiguous int32) have no
    probability.
    """
    count = rows.shape[0]
    if settings.chosen == "torch":
        values, grad = reference.rows_and_grad(
            student[:count],
            teacher[:count],
            left_out(student.shape[1], dead, ranges),
            tau=settings.tau,
            divergence=settings.divergence,
            beta=settings.beta,
        )
        rows.copy_(values)
        return None if factor is None else (grad * factor[:, None]).masked_fill_((factor == 0)[:, None], 0.0)
    if count:
        from arkfast.kernels.linear_kl import kernel

        config = pick(TABLE, device=student.device, width=student.shape[1], dtype=student.dtype)
        kernel.linear_kl_rows[(count,)](
            student,
            teacher,
            dead,
            ranges,
            factor,
            rows,
            out,
            student.stride(0),
            teacher.stride(0),
            0 if out is None else out.stride(0),
            student.shape[1],
            settings.tau,
            1.0 / settings.tau,
            settings.beta,
            DIVERGENCE=DIVERGENCES.index(settings.divergence),
            NEED_GRAD=factor is not None,
            HAS_DEAD=dead is not None,
            RANGES=0 if ranges is None else ranges.shape[1],
            **config.kwargs(),
        )
    return out


def chunk_loop(
    tensors: tuple[torch.Tensor, ...],
    dead: torch.Tensor | None,
    ranges: torch.Tensor | None,
    factor: torch.Tensor | None,
    grads: tuple[bool, bool],
    settings: Settings,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """(rows [T], and, with ``factor`` [T], the gradients of Σ factor · rows to the student's hidden and weight that ``grads`` wants)."""
    hidden_s, weight_s, hidden_t, weight_t = tensors
    fast = settings.chosen == "triton"
    student = ChunkedLinear(hidden_s, weight_s, settings.rows, fast=fast, grads=grads)
    teacher = ChunkedLinear(hidden_t, weight_t, settings.rows, fast=fast)
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
    rows = torch.empty(hidden_s.shape[0], dtype=dtype, device=hidden_s.device)
    with without_autocast(hidden_s):
        for s in student.spans():
            logits = student.logits(s)
            part = None if factor is None else factor[s]
            out = None if factor is None else student.d_logits_buffer(s, logits)
            own = None if ranges is None else ranges[s]
            d_logits = row_pass(logits, teacher.logits(s), dead, part, rows[s], out, settings, own)
            if part is not None and d_logits is not None:
                student.collect(s, d_logits.to(student.dtype), part == 0)
    return rows, *student.gradients()


class _LinearKL(torch.autograd.Function):
    """The reduced loss; gradients go to the student's hidden states and weight alone."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_s: torch.Tensor,
        weight_s: torch.Tensor,
        hidden_t: torch.Tensor,
        weight_t: torch.Tensor,
        row_weight: torch.Tensor | None,
        dead: torch.Tensor | None,
        ranges: torch.Tensor | None,
        settings: Settings,
    ) -> torch.Tensor:
        tensors = (hidden_s, weight_s, hidden_t, weight_t)
        grads, count = ctx.needs_input_grad[:2], hidden_s.shape[0]
        factor = torch.ones(count, device=hidden_s.device) if row_weight is None else row_weight.float()
        if settings.reduction == "mean":
            factor = factor / max(1, count)
        ready = any(grads) and settings.reduction != "none"
        rows, d_hidden, d_weight = chunk_loop(
            tensors, dead, ranges, factor if ready else None, grads if ready else (False, False), settings
        )  # fmt: skip
        ctx.settings, ctx.dtypes = settings, (hidden_s.dtype, weight_s.dtype)
        if settings.reduction == "none":
            ctx.save_for_backward(*tensors, dead, ranges, factor)
        else:
            ctx.save_for_backward(d_hidden, d_weight)
        # Mask, don't multiply: a row without weight may be NaN, and NaN · 0 is NaN.
        rows = (rows * factor).masked_fill_(factor == 0, 0.0)
        return rows if settings.reduction == "none" else rows.sum()

    @staticmethod
    @first_order("linear_kl")
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.settings.reduction == "none":
            *tensors, dead, ranges, factor = ctx.saved_tensors
            # Mask, don't multiply: the upstream gradient of a row without weight may be NaN.
            factor = (factor * upstream.float()).masked_fill_(factor == 0, 0.0)
            _, *grads = chunk_loop(tuple(tensors), dead, ranges, factor, ctx.needs_input_grad[:2], ctx.settings)
        else:
            grads = [None if x is None else x * upstream for x in ctx.saved_tensors]
        return *(None if x is None else x.to(dtype) for x, dtype in zip(grads, ctx.dtypes, strict=True)), *(None,) * 6


def linear_kl(
    hidden_s: torch.Tensor,
    weight_s: torch.Tensor,
    hidden_t: torch.Tensor,
    weight_t: torch.Tensor,
    *,
    tau: float = 1.0,
    divergence: Divergence = "forward_kl",
    beta: float = 0.5,
    blocked: torch.Tensor | None = None,
    ranges: torch.Tensor | None = None,
    row_weight: torch.Tensor | None = None,
    reduction: Reduction = "mean",
    chunk_rows: int | None = None,
    backend: Backend = "auto",
) -> torch.Tensor:
    """τ² · D(p, q) over the whole vocabulary from both models' hidden states, with gradients to ``hidden_s`` and ``weight_s``.

    p = softmax(hidden_t @ weight_t.T / τ), q = softmax(hidden_s @ weight_s.T / τ). D is KL(p‖q) for "forward_kl", KL(q‖p) for
    "reverse_kl" and β KL(p‖m) + (1−β) KL(q‖m), m = βp + (1−β)q, for "jsd". Logits exist for ``chunk_rows`` rows at a time, in float32 or
    wider; gradients of gradients are not available. ``opd_union_kl`` is far cheaper where a support of a few ids will do.

    Args:
        hidden_s: [T, Hs] bfloat16, float16, float32 or float64.
        weight_s: [V, Hs] the student's head.
        hidden_t: [T, Ht] the teacher's hidden states; no gradient.
        weight_t: [V, Ht] the teacher's head, on the same vocabulary: slice the longer of two heads that agree on their first V ids.
        tau: temperature.
        beta: weight of the teacher in "jsd", between 0 and 1.
        blocked: [b] int32 ids that have probability 0 in both; ids outside [0, V) have no effect.
        ranges: [T, R, 2] int32 half-open ranges [start, stop) of each row: an id in none of them counts as blocked in that row, and one
            that is blocked stays so inside them. A row that is left without any id gives NaN, unless its weight is 0.
        row_weight: [T] factor of each row, without gradient; a zero-weight row adds no loss or gradient, even if NaN.
        reduction: "mean" is the weighted sum over max(1, T), 0 for an empty batch; "sum" lets a caller divide by a count of its own; "none"
            gives weighted rows, whose backward takes the products a second time.
        chunk_rows: rows whose logits exist at once; None takes what 256 MB of float32 hold on a GPU and 16 MB on a CPU.

    Returns:
        A scalar, or [T] for "none", in float32 (float64 when an input is float64).

    Raises:
        ValueError: on wrong shapes, dtypes or settings.
    """
    op = "linear_kl"
    check_temperature(op, tau)
    check_choice(op, "divergence", divergence, DIVERGENCES)
    check_choice(op, "reduction", reduction, REDUCTIONS)
    check_beta(op, divergence, beta)
    sizes = check_shapes(
        op,
        hidden_s=(hidden_s, "T Hs"),
        weight_s=(weight_s, "V Hs"),
        hidden_t=(hidden_t, "T Ht"),
        weight_t=(weight_t, "V Ht"),
        blocked=(blocked, "b"),
        ranges=(ranges, "T R 2"),
        row_weight=(row_weight, "T"),
    )
    check_floating(op, hidden_s=hidden_s, weight_s=weight_s, hidden_t=hidden_t, weight_t=weight_t, row_weight=row_weight)
    check_ids(op, blocked=blocked)
    ranges = checked_ranges(op, ranges)
    if chunk_rows is not None:
        check_count(op, "chunk_rows", chunk_rows)
    if sizes["V"] == 0:
        raise ValueError(f"{op}: weight_s must have at least one row, got shape {list(weight_s.shape)}")
    wide = any(x.dtype == torch.float64 for x in (hidden_s, weight_s, hidden_t, weight_t))
    chosen = resolve_backend(backend, op, hidden_s, unfit="float64 inputs" if wide else None)
    elements = CHUNK_ELEMENTS_GPU if hidden_s.device.type == "cuda" else CHUNK_ELEMENTS_CPU
    settings = Settings(
        tau=tau,
        divergence=divergence,
        beta=beta,
        reduction=reduction,
        rows=chunk_rows or rows_within(elements, sizes["V"], most=1 << 13),
        chosen=chosen,
    )
    dead = blocked_columns(sizes["V"], blocked, None, hidden_s.device)
    weights = None if row_weight is None else row_weight.detach()
    return _LinearKL.apply(*recorded(hidden_s, weight_s), hidden_t.detach(), weight_t.detach(), weights, dead, ranges, settings)
