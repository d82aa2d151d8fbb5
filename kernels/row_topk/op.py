"""``topk_lse``: checks, row chunks and the choice of backend. The arithmetic is in ``reference`` and in ``kernel``."""

from __future__ import annotations

from typing import NamedTuple

import torch

from arkfast.kernels.common.backend import Backend, resolve_backend
from arkfast.kernels.common.checks import check_choice, check_count, check_flag, check_floating, check_ids, check_shapes
from arkfast.kernels.common.chunks import rows_within, spans
from arkfast.kernels.common.launch import on_device_of
from arkfast.kernels.common.ranges import checked_ranges, left_out
from arkfast.kernels.row_topk import launcher, reference

FLAG_NAN = 1
"""Bit of ``TopK.flags``: an allowed logit is NaN; it was treated as −inf."""
FLAG_INF = 2
"""Bit of ``TopK.flags``: an allowed logit is +inf; it takes part in the order, but no loss may use the row."""
FLAG_SHORT = 4
"""Bit of ``TopK.flags``: fewer than k ids were there to choose from, so the row ends in −1."""

CHUNK_ELEMENTS = 1 << 20
"""Logits looked at together: 8 MB of sort keys, near a CPU's cache and small beside any logits buffer."""


class TopK(NamedTuple):
    """The k first ids of each of T rows and what else the pass over the row gave."""

    values: torch.Tensor
    """[T, k] float32 (float64 for float64 input), descending; −inf where ``ids`` is −1."""
    ids: torch.Tensor
    """[T, k] int32; equal values stand in ascending id order; −1 past the last unmasked id."""
    lse: torch.Tensor | None
    """[T] log-sum-exp over the allowed ids, dtype of ``values``; None unless asked for."""
    gathered: torch.Tensor | None
    """[T, g] values at ``gather_ids``, −inf where an id is absent, blocked or NaN; None when no ids were given."""
    flags: torch.Tensor
    """[T] uint8 of FLAG_NAN, FLAG_INF and FLAG_SHORT."""


def select_topk(
    logits: torch.Tensor,
    k: int,
    *,
    dead: torch.Tensor | None,
    column_ids: torch.Tensor | None = None,
    gather_columns: torch.Tensor | None = None,
    need_lse: bool = False,
) -> TopK:
    """One buffer of logits [n, V] → TopK.

    ``dead`` [V] or [n, V] bool marks columns left out, ``column_ids`` [V] are the ids columns stand for, ``gather_columns`` is [n, g].
    """
    x, has_nan, has_inf = reference.clean(logits, dead)
    values, ids = reference.select(x, k, column_ids)
    flags = has_nan * FLAG_NAN + has_inf * FLAG_INF + (ids[:, -1] < 0) * FLAG_SHORT
    return TopK(
        values=values,
        ids=ids,
        lse=torch.logsumexp(x, dim=1) if need_lse else None,
        gathered=None if gather_columns is None else reference.take_columns(x, gather_columns),
        flags=flags.to(torch.uint8),
    )


def join(parts: list[TopK]) -> TopK:
    """Row chunks in order → one TopK."""
    if len(parts) == 1:
        return parts[0]
    return TopK(
        values=torch.cat([part.values for part in parts]),
        ids=torch.cat([part.ids for part in parts]),
        lse=_joined([part.lse for part in parts]),
        gathered=_joined([part.gathered for part in parts]),
        flags=torch.cat([part.flags for part in parts]),
    )


def _joined(column: list[torch.Tensor | None]) -> torch.Tensor | None:
    given = [part for part in column if part is not None]
    return torch.cat(given) if given else None


def first_rows(top: TopK, n: int) -> TopK:
    """What is known of the first ``n`` rows."""
    return TopK(
        values=top.values[:n],
        ids=top.ids[:n],
        lse=None if top.lse is None else top.lse[:n],
        gathered=None if top.gathered is None else top.gathered[:n],
        flags=top.flags[:n],
    )


@torch.no_grad()
def topk_lse(
    logits: torch.Tensor,
    k: int,
    *,
    blocked: torch.Tensor | None = None,
    ranges: torch.Tensor | None = None,
    gather_ids: torch.Tensor | None = None,
    need_lse: bool = False,
    backend: Backend = "auto",
) -> TopK:
    """The k largest logits of each row, exactly, in the order "value down, then lowest id".

    −0 equals +0. NaN counts as −inf and flags the row; +inf is a value like any other and flags the row; −inf means masked. There is no
    gradient.

    Args:
        logits: [T, V] bfloat16, float16, float32 or float64.
        k: how many ids; may exceed V or the number of allowed ids, the rest is then −1.
        blocked: [b] int32 ids that count as −inf; ids outside [0, V) have no effect.
        ranges: [T, R, 2] int32 half-open ranges [start, stop) of each row: an id in none of them counts as blocked in that row, and one
            that is blocked stays so inside them. A range whose stop is not above its start is empty; a row without an id has no entry.
        gather_ids: [T, g] int32 ids whose values are also returned (−1 is an empty slot).
        need_lse: also return the log-sum-exp of each row over the ids that are not blocked.

    Raises:
        ValueError: on wrong shapes, dtypes, k or backend.
    """
    op = "topk_lse"
    check_choice(op, "backend", backend, ("auto", "triton", "torch"))
    check_count(op, "k", k)
    check_flag(op, need_lse=need_lse)
    sizes = check_shapes(op, logits=(logits, "T V"), blocked=(blocked, "b"), ranges=(ranges, "T R 2"), gather_ids=(gather_ids, "T g"))
    check_floating(op, logits=logits)
    check_ids(op, blocked=blocked, gather_ids=gather_ids)
    ranges = checked_ranges(op, ranges)
    if sizes["V"] == 0:
        raise ValueError(f"{op}: logits must have at least one column, got shape {list(logits.shape)}")
    if resolve_backend(backend, op, logits, unfit=launcher.unfit(logits.dtype, k, sizes["V"], logits.stride(1))) == "triton":
        with on_device_of(logits):
            space = launcher.blocked_space(sizes["V"], blocked, logits.device)
            values, ids, lse, flags = launcher.topk_rows(logits, k, space, ranges=ranges, need_lse=need_lse)
            gathered = None if gather_ids is None else launcher.gather_rows(logits, gather_ids, space, ranges)
        return TopK(values, ids, lse, gathered, flags)
    dead = reference.blocked_columns(sizes["V"], blocked, None, logits.device)
    rows = rows_within(CHUNK_ELEMENTS, sizes["V"], most=1 << 16)
    parts = []
    for span in spans(sizes["T"], rows):
        out = left_out(sizes["V"], dead, None if ranges is None else ranges[span])
        wanted = None if gather_ids is None else gather_ids[span]
        parts.append(select_topk(logits[span], k, dead=out, gather_columns=wanted, need_lse=need_lse))
    return join(parts)
