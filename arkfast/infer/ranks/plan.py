"""Rows of an input in stretches of about equal length: chunks that are handed out to ranks, and shards for the jobs of an array."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from arkfast.data.rows import Row
from arkfast.records import InputError, Utterance

ASSUMED_SECONDS = 10.0
"""What a row is taken for whose length the manifest does not give."""
CHUNK_SECONDS = 300.0
"""Most audio in a chunk, unless one row has more. A rank that dies costs at most the chunks that it had begun."""
CHUNK_ROWS = 256
CHUNKS_PER_RANK = 8
"""Where there is little to do, chunks are so small that every rank gets about this many."""


class Lengths:
    """How long the rows of an input are, as far as the manifest says: four bytes a row. It is called with each row in order."""

    def __init__(self) -> None:
        self._seconds = array("f")

    def __call__(self, row: Row) -> None:
        self._seconds.append(0.0 if row.utterance is None else seconds_of(row.utterance))

    def chunks(
        self, world: int, *, seconds: float = CHUNK_SECONDS, rows: int = CHUNK_ROWS, done: Callable[[int], bool] = lambda row: False
    ) -> array[int]:
        """The first row of each chunk, ascending; a chunk ends where the next begins.

        Args:
            world: how many ranks there are.
            seconds: most audio of a chunk, unless one row has more.
            rows: most rows of a chunk.
            done: says of a row that nothing is left to do of it, so that it does not count.
        """
        left = array("f", (-1.0 if done(row) else length for row, length in enumerate(self._seconds)))
        most_seconds = min(seconds, sum(length for length in left if length > 0) / (CHUNKS_PER_RANK * world))
        most_rows = max(1, min(rows, sum(length >= 0 for length in left) // (CHUNKS_PER_RANK * world)))
        starts, so_far, count = array("q", [0] if left else []), 0.0, 0
        for row, length in enumerate(left):
            if length < 0:
                continue
            if count and (count >= most_rows or so_far + length > most_seconds):
                starts.append(row)
                so_far, count = 0.0, 0
            so_far, count = so_far + length, count + 1
        return starts

    def shard(self, shard: Shard) -> range:
        """The rows of a shard: neighbours, of about as much audio as those of every other shard, and at least one.

        Raises:
            InputError: there are more shards than rows.
        """
        rows, count = len(self._seconds), shard.count
        if count > rows:
            raise InputError(f"--shard {shard}: the input has {rows} row{'' if rows == 1 else 's'}; give at most so many shards")
        until = list(accumulate(self._seconds))
        bounds = [0, *(bisect_left(until, until[-1] * number / count) + 1 for number in range(1, count)), rows]
        for number in range(1, count):  # a row that is longer than a shard should be leaves others without one
            bounds[number] = min(max(bounds[number], bounds[number - 1] + 1), rows - count + number)
        return range(bounds[shard.number - 1], bounds[shard.number])


@dataclass(frozen=True)
class Shard:
    """One of several parts of an input."""

    number: int
    """From 1."""
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @staticmethod
    def parse(text: str) -> Shard:
        """A shard as users write it, such as 3/16.

        Raises:
            InputError: it is none.
        """
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"--shard {text}: expected i/n, the i-th of n shards, with i from 1 to n, such as 3/16")
        return Shard(int(found[1]), int(found[2]))


def seconds_of(utterance: Utterance) -> float:
    """``known_seconds``, or ``ASSUMED_SECONDS`` where nothing says."""
    seconds = known_seconds(utterance)
    return ASSUMED_SECONDS if seconds is None else seconds


def known_seconds(utterance: Utterance) -> float | None:
    """How long an utterance is, by its segment or by a field ``duration``; None where nothing says."""
    if utterance.end is not None:
        return max(utterance.end - (utterance.begin or 0.0), 0.0)
    duration = utterance.extra.get("duration")
    if isinstance(duration, (int, float)) and not isinstance(duration, bool) and 0 < duration < 1e9:
        return float(duration)
    return None
