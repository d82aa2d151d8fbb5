"""What a page shows of scored rows, gathered in one pass: lengths and errors, confusions, the worst clips, the failures.

Knows scored rows and groups (``summary``'s contract); knows no markup. What it keeps does not grow with the rows, but for a few numbers
each.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from arkfast.metrics import Pair, align, canonical, tokenize
from arkfast.records import JsonRow

WORST = 24
"""Clips shown with their alignment."""
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
    name: str
    """Its id."""


@dataclass(frozen=True)
class Clip:
    """A clip with its transcript beside its reference."""

    row: JsonRow
    pairs: Sequence[Pair]
    excess: float
    """Errors beyond those that the group's own rate would give a reference of this length: what makes it one of the worst."""


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


def gather(summary: JsonRow, rows: Iterable[JsonRow]) -> Facts:
    """Go over the rows once.

    Args:
        summary: as ``summary.json`` has it; the groups' rates say which clips are worse than usual.
        rows: scored rows.
    """
    rates = {(group.get("preset"), group.get("language")): group.get("rate") or 0.0 for group in summary.get("groups", [])}
    facts = Facts()
    heap: list[tuple[float, int, Clip]] = []
    for number, row in enumerate(rows):
        if row.get("outcome") == "failed" and len(facts.failed) < FAILURES:
            facts.failed.append(row)
        if row.get("outcome") != "scored":
            continue
        errors, units = int(row["errors"]), int(row["ref_units"])
        if units:
            name = str(row.get("id") or f"row {number + 1}")
            facts.points.append(Point(clip_seconds(row), units, errors, canonical(row.get("language")) or "–", name))
        if not errors:
            continue
        unit = row["unit"]
        pairs = align(tokenize(row["ref_text_clean"], unit), tokenize(row["pred_text_clean"], unit))
        _count(facts, pairs)
        excess = errors - rates.get((row.get("preset"), canonical(row.get("language"))), 0.0) * units
        entry = (excess, -number, Clip(row, pairs, excess))  # of equals the first row; the number also spares clips a comparison
        if len(heap) < WORST:
            heapq.heappush(heap, entry)
        elif entry > heap[0]:
            heapq.heapreplace(heap, entry)
    facts.worst = [clip for *_, clip in sorted(heap, reverse=True)]
    return facts


def clip_seconds(row: JsonRow) -> float | None:
    """The length of a row's clip: its segment, or its recording's ``duration``; None where neither is told."""
    begin, end, duration = (_seconds(row.get(name)) for name in ("begin_time", "end_time", "duration"))
    stop = end if end is not None else duration
    return stop - (begin or 0.0) if stop is not None and stop > (begin or 0.0) else None


def _seconds(value: Any) -> float | None:
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return float(value) if sound else None


def _count(facts: Facts, pairs: Iterable[Pair]) -> None:
    for said, heard in pairs:
        if said is None:
            facts.insertions[heard or ""] += 1
        elif heard is None:
            facts.deletions[said] += 1
        elif said != heard:
            facts.substitutions[said, heard] += 1
