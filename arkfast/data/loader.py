"""Which rows come when, and batches made ahead of their use.

The order is a function of (seed, epoch, cursor) alone, so a resumed run sees exactly what an uninterrupted one would have seen.
Knows rows and lengths; decoding and features are ``collate``'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from arkfast import audio
from arkfast.records import Batch, Utterance

BUCKET_BATCHES = 16  # rows are sorted by length inside shuffled chunks of this many batches: little padding, still a random order


def row_seconds(utterance: Utterance) -> float:
    """An utterance's length in seconds: from its segment, else the row's ``duration``, else the file's header (used for bucketing only)."""
    if utterance.end is not None:
        return utterance.end - (utterance.begin or 0.0)
    duration = utterance.extra.get("duration")
    if isinstance(duration, (int, float)) and not isinstance(duration, bool) and duration > 0:
        return float(duration) - (utterance.begin or 0.0)
    if isinstance(utterance.audio, str):
        return audio.duration(utterance.audio, name=utterance.where or None) - (utterance.begin or 0.0)
    return len(utterance.audio) / audio.SAMPLING_RATE


class DataOrder:
    """An endless, reproducible order over ``n`` rows; position p lies in epoch p // n.

    Args:
        seconds: each row's length, by which neighbours of a batch are made alike.
        batch_size: rows of a batch; only the size of the length buckets depends on it.
        seed: of the permutations; epoch e uses (seed, e).
        shuffle: False keeps the manifest's order.
    """

    def __init__(self, seconds: Sequence[float], *, batch_size: int, seed: int, shuffle: bool = True) -> None:
        if not len(seconds):
            raise ValueError("DataOrder: no rows to order")
        self._seconds = np.asarray(seconds, dtype=np.float64)
        self._batch_size, self._seed, self._shuffle = batch_size, seed, shuffle
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def rows(self, cursor: int, count: int) -> list[int]:
        """The row numbers at positions ``cursor`` … ``cursor + count − 1``."""
        n, picked = len(self._seconds), []
        while count:
            epoch, offset = divmod(cursor, n)
            chunk = self._permutation(epoch)[offset : offset + count]
            picked.extend(int(i) for i in chunk)
            cursor, count = cursor + len(chunk), count - len(chunk)
        return picked

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._make(epoch)
        return self._order

    def _make(self, epoch: int) -> np.ndarray:
        n = len(self._seconds)
        if not self._shuffle:
            return np.arange(n)
        random = np.random.default_rng([self._seed, epoch])
        order = random.permutation(n)
        chunk = self._batch_size * BUCKET_BATCHES
        batches: list[np.ndarray] = []
        tail = []
        for start in range(0, n, chunk):
            rows = order[start : start + chunk]
            rows = rows[np.argsort(self._seconds[rows], kind="stable")]
            for first in range(0, len(rows), self._batch_size):
                batch = rows[first : first + self._batch_size]
                (batches if len(batch) == self._batch_size else tail).append(batch)
        shuffled = [batches[i] for i in random.permutation(len(batches))]
        # A short batch stands last, so that the others stay aligned with the batches that the loader cuts.
        return np.concatenate(shuffled + tail)


class Loader:
    """Batches in order from a cursor on, prepared ahead by threads (decoding and features release the interpreter lock).

    Args:
        order: which rows come when.
        make: row numbers → batch.
        batch_size: rows of a batch.
        workers: threads; 0 prepares each batch when it is asked for.
        prefetch: batches prepared ahead for each thread.
    """

    def __init__(
        self, order: DataOrder, make: Callable[[list[int]], Batch], *, batch_size: int, workers: int = 0, prefetch: int = 2
    ) -> None:
        self._order, self._make, self._batch_size = order, make, batch_size
        self._workers, self._prefetch = workers, prefetch

    def batches(self, cursor: int) -> Iterator[Batch]:
        """Endless batches; the first holds the rows at ``cursor``. An error in preparing one is raised when its turn comes."""
        if self._workers == 0:
            while True:
                yield self._make(self._order.rows(cursor, self._batch_size))
                cursor += self._batch_size
        with ThreadPoolExecutor(self._workers, thread_name_prefix="arkfast-data") as pool:
            ahead: deque[Future[Batch]] = deque()
            try:
                while True:
                    while len(ahead) < self._workers * self._prefetch:
                        ahead.append(pool.submit(self._make, self._order.rows(cursor, self._batch_size)))
                        cursor += self._batch_size
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()
