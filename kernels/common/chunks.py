"""How many rows of a [T, V] product exist at once.

Rows finish within one chunk, so no running state crosses chunks and memory does not depend on T.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch


def rows_within(elements: int, width: int, *, most: int) -> int:
    """Rows of ``width`` elements that fit a budget of ``elements``, at least 1 and at most ``most``."""
    return max(1, min(most, elements // max(1, width)))


def spans(total: int, step: int) -> Iterator[slice]:
    """Slices of ``step`` that cover range(total) in order; one empty slice when total is 0, so that a loop's results keep their shapes."""
    for start in range(0, max(total, 1), step):
        yield slice(start, min(start + step, total))


def padded_rows(x: torch.Tensor, rows: int) -> torch.Tensor:
    """x [n, H] with zero rows appended up to ``rows``.

    A matrix product may sum in another order for another number of rows. With every chunk at one size, a row's result depends on the
    row alone.
    """
    if x.shape[0] == rows:
        return x
    return torch.cat([x, x.new_zeros(rows - x.shape[0], x.shape[1])])
