"""Top-k over a linear layer on a GPU: the product of a chunk of rows in a workspace, the row kernels on it, float32 scores of the winners.

cuBLAS does the product: a matrix product with the selection fused into it would
have to keep up with cuBLAS to within a tenth to be worth it, and Triton's does not. The passes over one chunk's rows run beside the next
chunk's product.
"""

from __future__ import annotations

from typing import overload

import torch

from arkfast.kernels.common.beside import BUFFERS, Beside
from arkfast.kernels.common.chunks import padded_rows, rows_within, spans
from arkfast.kernels.common.launch import Config, Rule, pick
from arkfast.kernels.linear_topk.reference import Columns
from arkfast.kernels.row_topk import launcher as rows_launcher
from arkfast.kernels.row_topk.op import TopK, join
from arkfast.kernels.row_topk.reference import blocked_columns

CHUNK_ROWS = 1024
"""Rows of a chunk where the workspace allows: enough for a full-speed product, which below 512 waits for the weight instead."""
CHUNK_ROWS_INTERPRETED = 64
ALIGNED = 64
"""Rows of the workspace start at multiples of so many elements: 16-byte loads whatever the vocabulary."""
GROUP_SHARE = 1.05
"""Group maxima and a row's smaller buffers, over the logits' own bytes."""

RESCORE = (Rule(config=Config(num_warps=4, blocks={"BLOCK_H": 128})),)
"""64 slots by 128 features are 64 float32 sums a thread."""


def aligned(width: int) -> int:
    """``width`` rounded up to whole ALIGNED."""
    return -(-width // ALIGNED) * ALIGNED


def chunk_rows(width: int, workspace_mb: int, dtype: torch.dtype, device: torch.device) -> int:
    """Rows of a chunk, a power of two: a function of the layer and the workspace, which BUFFERS chunks share, never of how many rows there
    are. A product has whole tiles then, and the usual numbers of positions have whole chunks: a last one is computed in full."""
    most = CHUNK_ROWS_INTERPRETED if device.type == "cpu" else CHUNK_ROWS
    rows = rows_within(int((workspace_mb << 20) / (dtype.itemsize * GROUP_SHARE * BUFFERS)), aligned(width), most=most)
    return 1 << (rows.bit_length() - 1)


def linear_topk_rows(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    k: int,
    *,
    vocab_map: torch.Tensor | None,
    blocked: torch.Tensor | None,
    ranges: torch.Tensor | None,
    gather_ids: torch.Tensor | None,
    need_lse: bool,
    rescores: bool,
    workspace_mb: int,
) -> TopK:
    """hidden [T, H], weight [V, H] of one dtype → TopK; see ``linear_topk_lse``."""
    width, device = weight.shape[0], hidden.device
    columns = Columns(vocab_map)
    if columns.order is None or columns.sorted_ids is None or vocab_map is None:
        # The columns that fill a workspace row up are −inf, so they take part in nothing, in none of the sums either.
        space = rows_launcher.blocked_space(aligned(width), blocked, device)
    else:
        dead = blocked_columns(width, blocked, vocab_map, device)
        assert dead is not None
        space = rows_launcher.mapped_space(columns.order.int(), columns.sorted_ids.int(), dead[columns.order])
        ranges = columns.position_ranges(ranges)
    positions = None if gather_ids is None else columns.places(gather_ids)
    rows = chunk_rows(width, workspace_mb, hidden.dtype, device)
    several = hidden.shape[0] > rows
    buffers = torch.empty(BUFFERS if several else 1, rows, aligned(width), dtype=hidden.dtype, device=device)
    buffers[:, :, width:] = float("-inf")
    parts = []
    with Beside(device, on=several) as halves:
        for number, span in enumerate(spans(hidden.shape[0], rows)):
            x, n, buffer = hidden[span], span.stop - span.start, number % len(buffers)
            logits = buffers[buffer]
            halves.claim(buffer)
            torch.mm(padded_rows(x, rows), weight.t(), out=logits[:, :width])
            with halves.second(buffer):
                own = None if ranges is None else ranges[span]
                values, ids, lse, flags = rows_launcher.topk_rows(logits[:n], k, space, ranges=own, need_lse=need_lse)
                gathered = None if positions is None else rows_launcher.gather_rows(logits[:n], positions[span], space, own)
                if rescores:
                    values, ids = rescored(x, weight, columns.of(ids), values, ids)
                    if gathered is not None and gather_ids is not None:
                        gathered, _ = rescored(x, weight, columns.of(gather_ids[span]), gathered, None)
                parts.append(TopK(values, ids, lse, gathered, flags))
    return join(parts)


@overload
def rescored(
    hidden: torch.Tensor, weight: torch.Tensor, columns: torch.Tensor, prior: torch.Tensor, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]: ...


@overload
def rescored(
    hidden: torch.Tensor, weight: torch.Tensor, columns: torch.Tensor, prior: torch.Tensor, ids: None
) -> tuple[torch.Tensor, None]: ...


def rescored(
    hidden: torch.Tensor, weight: torch.Tensor, columns: torch.Tensor, prior: torch.Tensor, ids: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """hidden [n, H] · weight [V, H] at ``columns`` [n, k] in float32, −inf where ``prior`` [n, k] is; with ``ids`` [n, k] also the rows of
    (values, ids) in the order (value down, id up)."""
    from arkfast.kernels.linear_topk import kernel

    rows, k = columns.shape
    hidden = hidden if hidden.stride(1) == 1 else hidden.contiguous()
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    values = torch.empty(rows, k, dtype=torch.float32, device=hidden.device)
    sorted_ids = None if ids is None else torch.empty(rows, k, dtype=torch.int32, device=hidden.device)
    slots = min(rows_launcher.K_MOST, max(2, rows_launcher.power_of_two(k)))
    kernel.rescore[(rows * -(-k // slots),)](
        hidden,
        hidden.stride(0),
        weight,
        weight.stride(0),
        columns.contiguous(),
        prior,
        ids,
        values,
        sorted_ids,
        weight.shape[0],
        k,
        H=hidden.shape[1],
        K=slots,
        SORT=ids is not None,
        **pick(RESCORE, device=hidden.device, width=hidden.shape[1], dtype=hidden.dtype).kwargs(),
    )
    return values, sorted_ids
