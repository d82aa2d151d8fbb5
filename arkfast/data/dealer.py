"""Batches dealt to the processes of a run.

A window of batches is what one optimizer step learns from, however many processes share it, so the data of step s is a function of (seed,
epoch, cursor) whatever the world's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from arkfast.data.order import DataOrder


class Window(NamedTuple):
    """One step's batches as one process sees them."""

    share: list[list[int]]
    """The row numbers of this process's batches, in order."""
    rounds: int
    """Batches of the process that has most: one with fewer is idle in the last."""
    batches: int
    """Batches of all processes."""
    rows: int
    """Rows of all processes."""
    cursor: int
    """Rows of the order consumed after the window."""


class Dealer:
    """Cuts an order into windows of ``batches`` batches and deals them out: batch j goes to process j mod ``world``.

    Args:
        order: which rows come when and share a batch.
        batches: of a window.
        rank: which process this is.
        world: how many there are.
        end: rows after which the data ends, the last window and its last batch cut short; None: never.

    Raises:
        ValueError: fewer than one batch in a window, or no such rank.
    """

    def __init__(self, order: DataOrder, *, batches: int, rank: int = 0, world: int = 1, end: int | None = None) -> None:
        if batches < 1:
            raise ValueError(f"Dealer: a window has at least 1 batch, got {batches}")
        if not 0 <= rank < world:
            raise ValueError(f"Dealer: there is no rank {rank} of {world}")
        self._order, self._batches, self._rank, self._world, self._end = order, batches, rank, world, end

    def windows(self, cursor: int) -> Iterator[Window]:
        """The windows from ``cursor`` on."""
        while self._end is None or cursor < self._end:
            dealt: list[list[int]] = []
            before = cursor
            while len(dealt) < self._batches and (self._end is None or cursor < self._end):
                rows = self._order.batch(cursor)
                dealt.append(rows if self._end is None else rows[: self._end - cursor])
                cursor += len(dealt[-1])
            rounds = -(-len(dealt) // self._world)
            yield Window(dealt[self._rank :: self._world], rounds, len(dealt), cursor - before, cursor)
