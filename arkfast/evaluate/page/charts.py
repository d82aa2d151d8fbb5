"""The evaluation page's drawings: error-rate bars with intervals, and errors over length.

Places run in per cent across and in pixels down, so that a drawing fills its column at any width and its text keeps its size.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from arkfast.evaluate.page.facts import Point
from arkfast.evaluate.page.paths import without_folders
from arkfast.plots import number, tick_labels, ticks
from arkfast.records import JsonRow
from arkfast.reports import interval, percent

MOST_POINTS = 1200
"""Clips drawn one by one; of more, those that lie close together are one dot whose area is their number."""

_BAR_HEIGHT, _AXIS_HEIGHT = 34, 20
_HEIGHT, _TOP, _BOTTOM = 360, 28, 44  # of the scatter: room for the axes' names, and below for the labels of the ticks
_GUTTER = 46  # left of the scatter, for its labels: the stylesheet's padding of .scatter
_INSIDE = 0.99  # share of the clips that each of the scatter's scales is made for; the others stand at its edge
_COLUMNS, _ROWS = 80, 40  # cells of a crowded scatter
_BINS = 10  # of a line
_LEAST = 40  # clips of a language that has a line
_TONES = 5  # languages with a colour of their own; the sixth is all others'


def label_of(group: JsonRow) -> tuple[str, str]:
    """A group's test set and language, the first never empty."""
    preset, language = group.get("preset"), group.get("language")
    return str(preset or language or "all rows"), str(language) if preset and language else ""


def metric_of(group: JsonRow) -> str:
    """What a group's rate is called."""
    metric = str(group.get("metric") or "joint")
    return "error rate" if metric == "joint" else metric.upper()


def bars(groups: Sequence[JsonRow]) -> str:
    """A row for each group: its name, its bar with the interval, its figures; one scale for all."""
    reach = [value for group in groups for value in (group.get("rate_high"), group.get("rate"), group.get("rate_with_failures")) if value]
    top = max(reach, default=0.0) * 1.04 or 0.01
    marks = ticks(0.0, top, 5)
    lines = "".join(f'<line x1="{_of(mark, top)}" x2="{_of(mark, top)}" y1="0" y2="100%" class="grid"/>' for mark in marks)
    rows = "".join(_bar(group, top, lines) for group in groups)
    step = marks[1] - marks[0] if len(marks) > 1 else top
    digits = max(0, -math.floor(math.log10(100 * step) + 1e-9))
    labels = "".join(
        f'<text x="{_of(mark, top)}" y="14" text-anchor="{"start" if i == 0 else "middle"}">{100 * mark:.{digits}f} %</text>'
        for i, mark in enumerate(marks)
        if mark < 0.97 * top
    )
    axis = f'<div class="bar axis" aria-hidden="true"><svg class="track" height="{_AXIS_HEIGHT}">{labels}</svg></div>'
    return f'<div class="bars">{rows}{axis}</div>'


def _bar(group: JsonRow, top: float, lines: str) -> str:
    name, language = label_of(group)
    rate, low, high = (group.get(key) for key in ("rate", "rate_low", "rate_high"))
    metric = metric_of(group)
    middle = _BAR_HEIGHT / 2
    drawn, said = [lines], f"{name} {language}: {metric} {percent(rate)}"
    ends_said = ""
    if rate is not None:
        drawn.append(f'<rect x="0" y="7" width="{_of(rate, top)}" height="{_BAR_HEIGHT - 14}" rx="3" class="fill"/>')
    if low is not None and high is not None:
        ends = "".join(
            f'<line x1="{_of(x, top)}" x2="{_of(x, top)}" y1="{middle - 5}" y2="{middle + 5}" class="whisker"/>' for x in (low, high)
        )
        drawn.append(f'<line x1="{_of(low, top)}" x2="{_of(high, top)}" y1="{middle}" y2="{middle}" class="whisker"/>{ends}')
        ends_said = interval(low, high)
        said += f", 95 % interval {ends_said}"
    if group.get("failed") and group.get("rate_with_failures") is not None:
        worse = group["rate_with_failures"]
        drawn.append(f'<line x1="{_of(worse, top)}" x2="{_of(worse, top)}" y1="3" y2="{_BAR_HEIGHT - 3}" class="failures"/>')
        said += f"; {percent(worse)} when failed rows count as deletions"
    return (
        f'<div class="bar"><div class="name">{escape(name)} <span class="faint">{escape(language)}</span></div>'
        f'<svg class="track" height="{_BAR_HEIGHT}" role="img" aria-label="{escape(said)}">{"".join(drawn)}</svg>'
        f'<div class="figure"><b>{percent(rate)}</b> {escape(metric)} <span class="faint">{ends_said}</span></div></div>'
    )


@dataclass(frozen=True)
class Bin:
    """Clips of similar length."""

    low: float
    high: float
    middle: float
    """Their mean length."""
    clips: int
    rate: float
    """Their errors / their reference units."""


def has_seconds(points: Sequence[Point]) -> bool:
    """Whether lengths are told for most clips, so that a scatter can stand over time."""
    return sum(point.seconds is not None for point in points) * 2 > len(points)


def length_unit(points: Sequence[Point]) -> str:
    """What the lengths are counted in."""
    return "seconds" if has_seconds(points) else "units of the reference"


def lengths(points: Sequence[Point]) -> list[tuple[float, Point]]:
    """(length, clip) in seconds where most clips tell theirs (the others are left out), else in reference units."""
    if has_seconds(points):
        return [(point.seconds, point) for point in points if point.seconds is not None]
    return [(float(point.units), point) for point in points]


def bins(placed: Sequence[tuple[float, Point]]) -> list[Bin]:
    """About ``_BINS`` bins of equally many clips, by length; clips of one length are never parted."""
    ordered = sorted(placed, key=lambda item: item[0])
    found, start = [], 0
    for part in range(1, _BINS + 1):
        stop = max(start, round(part * len(ordered) / _BINS))
        while start < stop < len(ordered) and ordered[stop][0] == ordered[stop - 1][0]:
            stop += 1
        if stop > start:
            inside = ordered[start:stop]
            rate = sum(point.errors for _, point in inside) / sum(point.units for _, point in inside)
            found.append(Bin(inside[0][0], inside[-1][0], sum(x for x, _ in inside) / len(inside), len(inside), rate))
        start = stop
    return found


def scatter(points: Sequence[Point]) -> str:
    """Error rate over length: a dot for each clip, or for clips that lie together; for each language a line through tenths of its clips.

    Args:
        points: at least one.
    """
    placed = lengths(points)
    unit = length_unit(points)
    (top, right), tones = edges(points), tones_of(points)

    def down(rate: float) -> float:
        return round(_HEIGHT - _BOTTOM - min(rate / top, 1.0) * (_HEIGHT - _TOP - _BOTTOM), 1)

    parts = [f'<text x="{-_GUTTER}" y="12">errors, % of the clip\'s reference</text>']
    rates, places = ticks(0.0, top, 5), ticks(0.0, right, 6)
    for rate, label in zip(rates, tick_labels([100 * rate for rate in rates]), strict=True):
        parts.append(f'<line x1="0" x2="100%" y1="{down(rate)}" y2="{down(rate)}" class="grid"/>')
        parts.append(f'<text x="-8" y="{down(rate) + 4}" text-anchor="end">{label} %</text>')
    for x, label in zip(places, tick_labels(places), strict=True):
        anchor = "start" if x == 0 else "end" if x > 0.96 * right else "middle"
        parts.append(f'<text x="{_of(x, right)}" y="{_HEIGHT - 24}" text-anchor="{anchor}">{label}</text>')
    parts.append(f'<text x="100%" y="{_HEIGHT - 5}" text-anchor="end">length in {unit}</text>')
    parts += _dots(placed, right, top, down, tones)
    for tone in sorted(set(tones.values())):
        members = [(x, point) for x, point in placed if tones[point.language] == tone]
        if len(members) >= _LEAST or len(set(tones.values())) == 1:
            parts += _line(bins(members), tone, right, down, unit)
    pooled = bins(placed)
    said = f"Error rate over length in {unit}, {len(placed):,} clips. Shortest tenth {percent(pooled[0].rate)}, "
    said += f"longest tenth {percent(pooled[-1].rate)}; the table below has all."
    return f'<svg class="scatter" height="{_HEIGHT}" role="img" aria-label="{escape(said)}">{"".join(parts)}</svg>'


def edges(points: Sequence[Point]) -> tuple[float, float]:
    """(error rate, length) at the scatter's top and right edge: all but one clip in a hundred stay within each."""

    def inside(values: list[float]) -> float:
        return sorted(values)[min(int(_INSIDE * len(values)), len(values) - 1)]

    return max(inside([point.errors / point.units for point in points]), 0.05) * 1.02, inside([x for x, _ in lengths(points)]) * 1.02 or 1.0


def _line(pooled: Sequence[Bin], tone: int, right: float, down: Callable[[float], float], unit: str) -> list[str]:
    parts = []
    for before, after in itertools.pairwise(pooled):
        ends = f'x1="{_of(before.middle, right)}" y1="{down(before.rate)}" x2="{_of(after.middle, right)}" y2="{down(after.rate)}"'
        parts.append(f'<line {ends} class="pooled t{tone}"/>')
    for place in pooled:
        words = f"{number(round(place.low, 2))} to {number(round(place.high, 2))} {unit}, {place.clips:,} clips: {percent(place.rate)}"
        spot = f'cx="{_of(place.middle, right)}" cy="{down(place.rate)}" r="4"'
        parts.append(f'<circle {spot} class="pooled t{tone}"><title>{escape(words)}</title></circle>')
    return parts


def tones_of(points: Sequence[Point]) -> dict[str, int]:
    """Each language's colour, 1 to 6: the most frequent ones have their own, all others share the last."""
    common = [language for language, _ in Counter(point.language for point in points).most_common()]
    own = len(common) if len(common) <= _TONES + 1 else _TONES
    return {language: min(i, own) + 1 for i, language in enumerate(common)}


def _dots(
    placed: Sequence[tuple[float, Point]], right: float, top: float, down: Callable[[float], float], tones: Mapping[str, int]
) -> list[str]:
    if len(placed) <= MOST_POINTS:
        return [
            f'<circle cx="{_of(x, right)}" cy="{down(point.errors / point.units)}" r="3.5" class="dot t{tones[point.language]}">'
            f"<title>{escape(without_folders(point.name))}: {point.errors} of {point.units} wrong</title></circle>"
            for x, point in placed
        ]
    cells: Counter[tuple[int, int]] = Counter()
    for x, point in placed:
        across = min(int(x / right * _COLUMNS), _COLUMNS - 1)
        cells[across, round(min(point.errors / point.units / top, 1.0) * _ROWS)] += 1
    most = max(cells.values())
    return [
        f'<circle cx="{100 * (across + 0.5) / _COLUMNS:.2f}%" cy="{down(up / _ROWS * top)}" '
        f'r="{1.5 + 8 * math.sqrt(count / most):.1f}" class="crowd"><title>{count:,} clips</title></circle>'
        for (across, up), count in sorted(cells.items(), key=lambda item: -item[1])
    ]


def _of(value: float, whole: float) -> str:
    return f"{100 * min(value / whole, 1.0):.2f}%"
