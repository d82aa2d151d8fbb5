"""Ids that a row may have, as a few half-open ranges of its own.

Letters: T (or n) rows, R ranges a row, V columns.
"""

from __future__ import annotations

import torch

from arkfast.kernels.common.checks import check_ids
from arkfast.kernels.common.ids import narrowed

MOST_RANGES = 16
"""Ranges of a row. Kernels look at each of them for every block of columns, in code that is written out for their number."""


def checked_ranges(op: str, ranges: torch.Tensor | None) -> torch.Tensor | None:
    """Ranges [T, R, 2] as kernels read them: contiguous int32. Their shape but for R has been checked.

    Raises:
        ValueError: they are not ids, or a row has none or too many of them.
    """
    check_ids(op, ranges=ranges)
    if ranges is None:
        return None
    if not 1 <= ranges.shape[1] <= MOST_RANGES:
        raise ValueError(
            f"{op}: ranges must have 1 to {MOST_RANGES} ranges a row, got {ranges.shape[1]}; use blocked for what all rows share"
        )
    return narrowed(ranges).contiguous()


def left_out(
    width: int, dead: torch.Tensor | None, ranges: torch.Tensor | None, column_ids: torch.Tensor | None = None
) -> torch.Tensor | None:
    """Columns that take part in nothing, for torch: those that are dead in every row, and those outside a row's ranges.

    Args:
        width: V.
        dead: [V] bool, or None.
        ranges: [n, R, 2], or None.
        column_ids: [V] the id of each column; None for its number.

    Returns:
        [n, V] bool; without ranges ``dead`` as it is.
    """
    if ranges is None:
        return dead
    ids = torch.arange(width, device=ranges.device) if column_ids is None else column_ids
    start, stop = ranges[:, :, 0, None], ranges[:, :, 1, None]
    inside = torch.zeros(ranges.shape[0], width, dtype=torch.bool, device=ranges.device)
    for r in range(ranges.shape[1]):  # not all at once, which would make R tensors of the result's size
        inside |= (ids >= start[:, r]) & (ids < stop[:, r])
    return ~inside if dead is None else ~inside | dead
