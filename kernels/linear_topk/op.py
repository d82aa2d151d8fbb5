"""``linear_topk_lse``: checks, and the choice between ``launcher`` and row chunks in torch. The order is ``row_topk``'s."""

from __future__ import annotations

from typing import Literal

import torch

from arkfast.kernels.common.backend import Backend, resolve_backend
from arkfast.kernels.common.checks import check_choice, check_count, check_flag, check_floating, check_ids, check_shapes
from arkfast.kernels.common.chunks import padded_rows, rows_within, spans
from arkfast.kernels.common.launch import on_device_of
from arkfast.kernels.common.precision import without_autocast
from arkfast.kernels.common.ranges import checked_ranges, left_out
from arkfast.kernels.linear_topk import launcher, reference
from arkfast.kernels.row_topk.launcher import unfit
from arkfast.kernels.row_topk.op import TopK, first_rows, join, select_topk
from arkfast.kernels.row_topk.reference import blocked_columns

WORKSPACE_BYTES_PER_LOGIT = 32
"""What one logit of a chunk in torch costs at the peak: itself, its float32 copies and two int64 sort keys."""
CHUNK_ROWS_CPU, CHUNK_ROWS_GPU = 64, 1024
"""Rows a chunk has where the workspace allows: enough for a full-speed product; a short last chunk is padded up to it."""


def chunk_rows(width: int, workspace_mb: int, device: torch.device) -> int:
    """Rows of a chunk of logits with ``width`` columns: a function of the layer and the workspace, never of how many rows there are."""
    most = CHUNK_ROWS_CPU if device.type == "cpu" else CHUNK_ROWS_GPU
    return rows_within((workspace_mb << 20) // WORKSPACE_BYTES_PER_LOGIT, width, most=most)


@torch.no_grad()
def linear_topk_lse(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    k: int,
    *,
    vocab_map: torch.Tensor | None = None,
    blocked: torch.Tensor | None = None,
    ranges: torch.Tensor | None = None,
    gather_ids: torch.Tensor | None = None,
    need_lse: bool = False,
    rescore: Literal["fp32", "none"] = "fp32",
    workspace_mb: int = 512,
    backend: Backend = "auto",
) -> TopK:
    """``topk_lse`` of hidden @ weight.T, computed in row chunks so that no [T, V] tensor exists. There is no gradient.

    Ids that go in (``blocked``, ``ranges``, ``gather_ids``) and come out are output ids: a column's number, or ``vocab_map[column]`` when
    a map is given. The order is "value down, then lowest output id". Every chunk has the same number of rows, the last one padded, so a
    row's result does not depend on how many rows there are.

    Args:
        hidden: [T, H] bfloat16, float16, float32 or float64.
        weight: [V, H]. The product is taken in the wider of the two dtypes.
        k: how many ids; may exceed the number of allowed ids, the rest is then −1.
        vocab_map: [V] int32 output id of each column, −1 for columns that have none: they take part in nothing, the log-sum-exp included.
            Two columns must not share an output id.
        blocked: [b] int32 output ids that count as −inf, in the log-sum-exp too; ids that no column stands for have no effect.
        ranges: [T, R, 2] int32 half-open ranges [start, stop) of output ids of each row: one in none of them counts as blocked in that
            row, and one that is blocked stays so inside them. A range whose stop is not above its start is empty; a row without an id has
            no entry.
        gather_ids: [T, g] int32 output ids whose values are also returned; −inf comes back where an id is −1, blocked, outside the row's
            ranges or stands for no column.
        need_lse: also each row's log-sum-exp over the ids that take part.
        rescore: "fp32" computes the returned values and gathered values again as float32 dot products and orders the k ids by them, where
            the product is narrower than float32 (a bf16 logit near 16 is a multiple of 0.0625); which k ids are chosen, and lse, still
            come from the product. "none" returns the product's values.
        workspace_mb: upper bound, in MiB, on the buffers of a chunk; at least one row is always computed.

    Returns:
        ``TopK``; see there.

    Raises:
        ValueError: on wrong shapes, dtypes, k, rescore, workspace or backend.
    """
    op = "linear_topk_lse"
    check_choice(op, "backend", backend, ("auto", "triton", "torch"))
    check_count(op, "k", k)
    check_flag(op, need_lse=need_lse)
    check_count(op, "workspace_mb", workspace_mb)
    check_choice(op, "rescore", rescore, ("fp32", "none"))
    sizes = check_shapes(
        op,
        hidden=(hidden, "T H"),
        weight=(weight, "V H"),
        vocab_map=(vocab_map, "V"),
        blocked=(blocked, "b"),
        ranges=(ranges, "T R 2"),
        gather_ids=(gather_ids, "T g"),
    )
    check_floating(op, hidden=hidden, weight=weight)
    check_ids(op, vocab_map=vocab_map, blocked=blocked, gather_ids=gather_ids)
    ranges = checked_ranges(op, ranges)
    if sizes["V"] == 0:
        raise ValueError(f"{op}: weight must have at least one row, got shape {list(weight.shape)}")

    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    rescores = rescore == "fp32" and dtype in (torch.bfloat16, torch.float16)
    if resolve_backend(backend, op, hidden, unfit=unfit(dtype, k, sizes["V"])) == "triton":
        with without_autocast(hidden), on_device_of(hidden):
            return launcher.linear_topk_rows(
                hidden,
                weight,
                k,
                vocab_map=vocab_map,
                blocked=blocked,
                ranges=ranges,
                gather_ids=gather_ids,
                need_lse=need_lse,
                rescores=rescores,
                workspace_mb=workspace_mb,
            )
    dead = blocked_columns(sizes["V"], blocked, vocab_map, hidden.device)
    columns = reference.Columns(vocab_map)
    rows = chunk_rows(sizes["V"], workspace_mb, hidden.device)
    gather_columns = None if gather_ids is None else columns.of(gather_ids)
    parts = []
    with without_autocast(hidden):
        for span in spans(sizes["T"], rows):
            x = padded_rows(hidden[span], rows)
            wanted = None if gather_columns is None else padded_rows(gather_columns[span], rows)
            own = None if ranges is None else padded_rows(ranges[span].flatten(1), rows).view(rows, -1, 2)
            out = left_out(sizes["V"], dead, own, vocab_map)
            top = select_topk(x @ weight.t(), k, dead=out, column_ids=vocab_map, gather_columns=wanted, need_lse=need_lse)
            if rescores:
                top = _rescored(top, x, weight, columns, wanted)
            parts.append(first_rows(top, span.stop - span.start))
    return join(parts)


def _rescored(top: TopK, hidden: torch.Tensor, weight: torch.Tensor, columns: reference.Columns, wanted: torch.Tensor | None) -> TopK:
    """``top`` with its values computed again in float32; what was −inf (masked, absent, NaN) stays so."""
    values = reference.exact_scores(hidden, weight, columns.of(top.ids))
    values, ids = reference.order_again(values, top.ids)
    gathered = top.gathered
    if gathered is not None and wanted is not None:
        masked = gathered == reference.NEG_INF
        gathered = reference.exact_scores(hidden, weight, wanted).masked_fill_(masked, reference.NEG_INF)
    return top._replace(values=values, ids=ids, gathered=gathered)
