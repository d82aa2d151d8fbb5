"""Batches in order, their features made ahead of their use.

The order, the pipeline that makes features and the memory that keeps them meet here; each has a module of its own.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Generic, TypeVar

import numpy as np

from arkfast import audio
from arkfast.data.cache import FeatureCache
from arkfast.data.order import DataOrder
from arkfast.data.pipeline import FeatureItem, FeaturePipeline
from arkfast.data.shards import open_audio
from arkfast.records import InputError, Utterance

__all__ = ["Batches", "DataOrder", "Loader", "planned_seconds", "row_seconds"]

B = TypeVar("B")


def row_seconds(utterance: Utterance) -> float:
    """An utterance's length in seconds: from its segment, else the row's ``duration``, else the file's header (used for bucketing only)."""
    if utterance.end is not None:
        return utterance.end - (utterance.begin or 0.0)
    duration = utterance.extra.get("duration")
    if isinstance(duration, (int, float)) and not isinstance(duration, bool) and 0 < duration < math.inf:
        return float(duration) - (utterance.begin or 0.0)
    if isinstance(utterance.audio, str):
        source, name = open_audio(utterance)
        whole = audio.duration(source, channel=utterance.channel, audio_track=utterance.audio_track, name=name)
        return whole - (utterance.begin or 0.0)
    if utterance.audio is None:
        raise InputError(f"{utterance.name}: no audio; the task needs a recording in every row")
    return len(utterance.audio) / audio.SAMPLING_RATE


def planned_seconds(
    rows: Sequence[Utterance], seconds_of: Callable[[Utterance], float] = row_seconds, *, unreadable: float | None = None
) -> list[float]:
    """The length of each row, by which batches are planned before anything is decoded.

    Args:
        rows: the utterances.
        seconds_of: an utterance's length.
        unreadable: what a row counts whose header cannot be read, so that it is passed over in its turn; None raises its error.

    Raises:
        InputError: a header cannot be read and ``unreadable`` is None.
    """
    seconds = []
    for row in rows:
        try:
            seconds.append(seconds_of(row))
        except InputError:
            if unreadable is None:
                raise
            seconds.append(unreadable)
    return seconds


class Batches(Generic[B]):
    """Batches of rows that the caller picks, their features made ahead of their use.

    Args:
        rows: the utterances that a plan counts.
        pipeline: makes their features; its workers, its reach ahead and its policy for bad audio are those of the batches.
        make: the usable items of a batch → batch.
        cache_mb: budget in MiB for features of rows that come again. What a second extractor prepared is not kept, so with one it is 0.
    """

    def __init__(
        self,
        rows: Sequence[Utterance],
        pipeline: FeaturePipeline,
        make: Callable[[Sequence[FeatureItem]], B],
        *,
        cache_mb: int = 0,
    ) -> None:
        self._rows, self._pipeline, self._make = rows, pipeline, make
        self._fresh: dict[str, np.ndarray] = {}
        self._cache = FeatureCache(lambda utterance: self._fresh[utterance.id], cache_mb) if cache_mb else None

    def planned(self, plan: Iterable[list[int]]) -> Generator[B | None, None, None]:
        """A batch for each list of row numbers, in order; None for one without a usable row, which the policy has passed over.

        Args:
            plan: read as far ahead as the pipeline reaches.

        Raises:
            InputError: as the policy says, or no row of as many as an epoch has is usable.
            Exception: whatever the pipeline or ``make`` raised, in its turn.
        """
        sizes: deque[int] = deque()
        barren = 0
        with closing(self._pipeline.features(self._asked(plan, sizes))) as stream:
            for item in stream:
                # The batch's size was noted before its first row was asked for.
                items = [item, *(next(stream) for _ in range(sizes.popleft() - 1))]
                usable = [self._remember(item) for item in items if not isinstance(item.features, InputError)]
                barren = 0 if usable else barren + len(items)
                if barren >= len(self._rows):
                    raise InputError(f"none of the {len(self._rows)} rows has usable audio; the last: {items[-1].features}")
                yield self._make(usable) if usable else None

    def _asked(self, plan: Iterable[list[int]], sizes: deque[int]) -> Iterator[Utterance | FeatureItem]:
        """Rows in order; a row whose features are kept comes with them. ``sizes`` gets each batch's length."""
        for picked in plan:
            sizes.append(len(picked))
            for i in picked:
                kept = self._kept(self._rows[i])
                yield self._rows[i] if kept is None else FeatureItem(self._rows[i], kept)

    def _kept(self, utterance: Utterance) -> np.ndarray | None:
        try:
            return None if self._cache is None else self._cache(utterance)
        except KeyError:
            return None

    def _remember(self, item: FeatureItem) -> FeatureItem:
        """The item, its features kept where the budget allows."""
        if self._cache is None:
            return item
        assert isinstance(item.features, np.ndarray)
        self._fresh[item.utterance.id] = item.features
        features = self._cache(item.utterance)
        del self._fresh[item.utterance.id]
        return item._replace(features=features)


class Loader(Batches[B]):
    """Batches in an order, from a cursor on.

    Args:
        order: which rows come when, and which share a batch.
        rows: the utterances that ``order`` counts.
        pipeline, make, cache_mb: as for ``Batches``.

    Raises:
        ValueError: ``order`` counts other rows.
    """

    def __init__(
        self,
        order: DataOrder,
        rows: Sequence[Utterance],
        pipeline: FeaturePipeline,
        make: Callable[[Sequence[FeatureItem]], B],
        *,
        cache_mb: int = 0,
    ) -> None:
        if len(order) != len(rows):
            raise ValueError(f"Loader: the order counts {len(order)} rows, there are {len(rows)}")
        super().__init__(rows, pipeline, make, cache_mb=cache_mb)
        self._order = order

    def batches(self, cursor: int) -> Iterator[tuple[B, int]]:
        """Endless (batch, cursor after it), the first batch beginning at ``cursor``; a resumed run goes on from the cursor after its last.

        Rows that the policy passes over leave their batch smaller and the others as they were; a batch without a usable row is left out.

        Raises:
            InputError: as the policy says, or no row of a whole epoch is usable.
            Exception: whatever the pipeline or ``make`` raised, in its turn.
        """
        sizes: deque[int] = deque()
        with closing(self.planned(self._from(cursor, sizes))) as planned:
            for batch in planned:
                cursor += sizes.popleft()
                if batch is not None:
                    yield batch, cursor

    def _from(self, cursor: int, sizes: deque[int]) -> Iterator[list[int]]:
        """The order's batches from ``cursor`` on; ``sizes`` gets each one's length."""
        while True:
            picked = self._order.batch(cursor)
            sizes.append(len(picked))
            cursor += len(picked)
            yield picked
