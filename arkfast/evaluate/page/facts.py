"""What a page shows of scored rows, gathered in one pass: lengths and errors, confusions, the worst clips, the failures, and beside
another system's rows the clips that changed most.

What it keeps does not grow with the rows, but for a few numbers each.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from arkfast.metrics import Pair, align, canonical, tokenize
from arkfast.records import JsonRow

WORST = 24
"""Clips shown with their alignment."""
CHANGED = 8
"""Clips shown that lost errors against another system, and as many that gained some."""
FAILURES = 100
"""Failed rows named; the others are counted."""


@dataclass(frozen=True)
class Point:
    """One scored row with a reference."""

    seconds: float | None
    """Length of the clip, where the row tells it."""
    units: int
    """Of the reference, above 0."""
    errors: int
    language: str
    """Its code; empty where the row names none."""
    name: str
    """Its id."""


@dataclass(frozen=True)
class Clip:
    """A clip with its transcript beside its reference."""

    row: JsonRow
    pairs: Sequence[Pair]
    excess: float
    """Errors beyond those that the group's own rate would give a reference of this length: what makes it one of the worst."""


@dataclass(frozen=True)
class Change:
    """A clip that both systems have scored, with both transcripts beside the reference."""

    row: JsonRow
    pairs: Sequence[Pair]
    other: Sequence[Pair]
    """The other system's transcript."""
    difference: int
    """Errors of this system minus errors of the other; never 0."""


@dataclass
class Facts:
    """All that the page's lower half shows."""

    points: list[Point] = field(default_factory=list)
    substitutions: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(said, heard) → how often."""
    deletions: Counter[str] = field(default_factory=Counter)
    insertions: Counter[str] = field(default_factory=Counter)
    worst: list[Clip] = field(default_factory=list)
    """The ``WORST`` clips with the largest excess, the worst first; only clips with errors."""
    failed: list[JsonRow] = field(default_factory=list)
    """The first ``FAILURES`` rows without a transcript."""
    gained: list[Change] = field(default_factory=list)
    """The ``CHANGED`` clips that have most errors more than the other system's."""
    lost: list[Change] = field(default_factory=list)
    """The ``CHANGED`` clips that have most errors fewer."""
    changed: Counter[str] = field(default_factory=Counter)
    """How many clips have ``more``, ``fewer`` and ``equal`` errors, and how many are right now (``mended``) or wrong now (``broken``)."""


def gather(summary: JsonRow, rows: Iterable[JsonRow], others: Iterable[JsonRow] | None = None) -> Facts:
    """Go over the rows once.

    Args:
        summary: as ``summary.json`` has it; the groups' rates say which clips are worse than usual.
        rows: scored rows.
        others: another system's scored rows in the same order, whose clips are compared one by one.
    """
    rates = {(group.get("preset"), group.get("language")): group.get("rate") or 0.0 for group in summary.get("groups", [])}
    facts = Facts()
    heap: list[tuple[float, int, Clip]] = []
    gained: list[tuple[int, int, Change]] = []
    lost: list[tuple[int, int, Change]] = []
    beside = itertools.repeat(None) if others is None else others
    for number, (row, other) in enumerate(zip(rows, beside, strict=False)):  # what is repeated has no end
        if row.get("outcome") == "failed" and len(facts.failed) < FAILURES:
            facts.failed.append(row)
        if row.get("outcome") != "scored":
            continue
        errors, units = int(row["errors"]), int(row["ref_units"])
        if units:
            name = str(row.get("id") or f"row {number + 1}")
            facts.points.append(Point(clip_seconds(row), units, errors, canonical(row.get("language")) or "", name))
        if other is not None and other.get("outcome") == "scored":
            difference = errors - int(other["errors"])
            facts.changed["more" if difference > 0 else "fewer" if difference else "equal"] += 1
            facts.changed["mended"] += bool(not errors and other["errors"])
            facts.changed["broken"] += bool(errors and not other["errors"])
            if difference:
                change = Change(row, aligned(row), aligned(other), difference)
                _keep(gained if difference > 0 else lost, (abs(difference), -number, change), CHANGED)
        if not errors:
            continue
        pairs = aligned(row)
        _count(facts, pairs)
        excess = errors - rates.get((row.get("preset"), canonical(row.get("language"))), 0.0) * units
        entry = (excess, -number, Clip(row, pairs, excess))  # of equals the first row; the number also spares clips a comparison
        _keep(heap, entry, WORST)
    facts.worst = [clip for *_, clip in sorted(heap, reverse=True)]
    facts.gained, facts.lost = ([change for *_, change in sorted(kept, reverse=True)] for kept in (gained, lost))
    return facts


def aligned(row: JsonRow) -> list[Pair]:
    """A scored row's transcript beside its reference."""
    return align(tokenize(row["ref_text_clean"], row["unit"]), tokenize(row["pred_text_clean"], row["unit"]))


_Entry = TypeVar("_Entry", tuple[float, int, Clip], tuple[int, int, Change])


def _keep(heap: list[_Entry], entry: _Entry, most: int) -> None:
    """Keep the ``most`` largest entries."""
    if len(heap) < most:
        heapq.heappush(heap, entry)
    elif entry > heap[0]:
        heapq.heapreplace(heap, entry)


def clip_seconds(row: JsonRow) -> float | None:
    """The length of a row's clip: its segment, or its recording's ``duration``; None where neither is told."""
    begin, end, duration = (_seconds(row.get(name)) for name in ("begin_time", "end_time", "duration"))
    stop = end if end is not None else duration
    return stop - (begin or 0.0) if stop is not None and stop > (begin or 0.0) else None


def _seconds(value: object) -> float | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        return None
    return float(value)


def _count(facts: Facts, pairs: Iterable[Pair]) -> None:
    for said, heard in pairs:
        if said is None:
            facts.insertions[heard or ""] += 1
        elif heard is None:
            facts.deletions[said] += 1
        elif said != heard:
            facts.substitutions[said, heard] += 1
