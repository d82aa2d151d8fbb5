"""Which rows come when, and which of them share a batch.

The order depends on row numbers and lengths in seconds alone. All of it is a function of (seed, epoch, cursor), so a resumed run, and a run
with any number of workers, sees exactly what an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

BUCKET_BATCHES = 16  # rows are sorted by length inside shuffled chunks of this many batches: little padding, still a random order


class DataOrder:
    """An endless, reproducible order over ``n`` rows, cut into batches; position p lies in epoch p // n.

    Without ``batch_seconds`` every batch has ``batch_size`` rows, the one at an epoch's end reaching into the next epoch. With it a batch
    takes rows for as long as (rows · its longest row) stays within the budget and it has at most ``batch_size``; it ends with its epoch.

    Args:
        seconds: each row's length, by which neighbours of a batch are made alike.
        batch_size: rows of a batch, the most of them where ``batch_seconds`` is given.
        seed: of the permutations; epoch e uses (seed, e).
        shuffle: False keeps the manifest's order.
        batch_seconds: the most audio seconds of a batch, padding included; a row longer than that is a batch of its own. None: no budget.

    Raises:
        ValueError: no rows, a batch size under 1, or a budget that is not positive.
    """

    def __init__(
        self, seconds: Sequence[float], *, batch_size: int, seed: int, shuffle: bool = True, batch_seconds: float | None = None
    ) -> None:
        if not len(seconds):
            raise ValueError("DataOrder: no rows to order")
        if batch_size < 1:
            raise ValueError(f"DataOrder: batch_size must be at least 1, got {batch_size}")
        if batch_seconds is not None and not batch_seconds > 0:
            raise ValueError(f"DataOrder: batch_seconds must be above 0, or None for no budget, got {batch_seconds}")
        self._seconds = np.asarray(seconds, dtype=np.float64)
        self._batch_size, self._seed, self._shuffle, self._budget = batch_size, seed, shuffle, batch_seconds
        self._plans: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        """Rows of an epoch."""
        return len(self._seconds)

    @property
    def typical_rows(self) -> int:
        """Rows of a batch: ``batch_size``, or what the budget holds of rows of mean length."""
        if self._budget is None:
            return self._batch_size
        return max(1, min(self._batch_size, int(self._budget / max(float(self._seconds.mean()), 1e-3))))

    def rows(self, cursor: int, count: int) -> list[int]:
        """The row numbers at positions ``cursor`` … ``cursor + count − 1``."""
        n = len(self._seconds)
        picked: list[int] = []
        while count:
            epoch, offset = divmod(cursor, n)
            chunk = self._plan(epoch)[0][offset : offset + count]
            picked.extend(int(i) for i in chunk)
            cursor, count = cursor + len(chunk), count - len(chunk)
        return picked

    def batch(self, cursor: int) -> list[int]:
        """The row numbers of the batch that begins at ``cursor``; the next one begins at ``cursor + len(batch)``.

        A cursor inside one of the batches that a budget has cut (left by a run with another budget) gives the rest of that batch.
        """
        if self._budget is None:
            return self.rows(cursor, self._batch_size)
        epoch, offset = divmod(cursor, len(self._seconds))
        order, ends = self._plan(epoch)
        end = ends[np.searchsorted(ends, offset, side="right")]
        return [int(i) for i in order[offset:end]]

    def batch_count(self, epochs: int, *, cursor: int = 0) -> int:
        """Batches that pass over what is left of the first ``epochs`` epochs at ``cursor``."""
        n = len(self._seconds)
        if self._budget is None:
            return max(0, -(-(n * epochs - cursor) // self._batch_size))
        first, offset = divmod(cursor, n)
        done = int(np.searchsorted(self._plan(first)[1], offset, side="right")) if first < epochs else 0
        return sum(len(self._plan(epoch)[1]) for epoch in range(first, epochs)) - done

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """An epoch's row numbers in order, and where its batches end (empty without a budget)."""
        if epoch not in self._plans:
            # Rows are asked for ahead of the batches in use, so at an epoch's end two plans are needed in turn.
            for old in sorted(self._plans)[:-1]:
                del self._plans[old]
            self._plans[epoch] = self._make(epoch)
        return self._plans[epoch]

    def _make(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        n = len(self._seconds)
        random = np.random.default_rng([self._seed, epoch])
        if not self._shuffle:
            cut = [] if self._budget is None else list(self._cut(np.arange(n)))
            return np.arange(n), np.cumsum([len(batch) for batch in cut], dtype=np.int64)
        order = random.permutation(n)
        chunk = self.typical_rows * BUCKET_BATCHES
        batches: list[np.ndarray] = []
        tail: list[np.ndarray] = []
        for start in range(0, n, chunk):
            rows = order[start : start + chunk]
            for batch in self._cut(rows[np.argsort(self._seconds[rows], kind="stable")]):
                short = self._budget is None and len(batch) < self._batch_size
                (tail if short else batches).append(batch)
        # Batches of a fixed size are cut by position, so a short one stands last and the others stay aligned.
        ordered = [batches[i] for i in random.permutation(len(batches))] + tail
        ends = [] if self._budget is None else [len(batch) for batch in ordered]
        return np.concatenate(ordered), np.cumsum(ends, dtype=np.int64)

    def _cut(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """``rows`` in batches, in their order."""
        if self._budget is None:
            for first in range(0, len(rows), self._batch_size):
                yield rows[first : first + self._batch_size]
            return
        first, longest = 0, 0.0
        for at, seconds in enumerate(self._seconds[rows].tolist()):
            longest = max(longest, seconds)
            if at > first and (at - first == self._batch_size or longest * (at - first + 1) > self._budget):
                yield rows[first:at]
                first, longest = at, seconds
        yield rows[first:]
