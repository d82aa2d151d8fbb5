"""Line charts and bars as SVG in text, for the pages of ``arkfast.reports``.

They are drawn here rather than by a plotting library for three reasons: a page that forbids scripts can show them, their colours are the
page's own variables, so they follow the reader's dark mode, and their text stays text, which is read aloud and scales with a phone's
width. Everything that comes from outside is escaped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

# A chart's own units. Its text stays legible where the page scales it down to a phone's 390 pixels: 350 / 420 · 12.5 = 10 pixels.
WIDTH, HEIGHT = 420, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 10, 46
_COLUMNS = 120
"""Most points that a line has; more are drawn as the mean of each column between its least and its greatest."""

_DASHES = ("", "7 4", "2 4", "10 3 2 3", "4 2", "1 3")
"""Of the first line, the second, …: a line that lies on another stays visible, and lines are told apart without their colours."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart."""

    label: str
    """What the key and the tooltips call it."""
    x: Sequence[float]
    """Ascending."""
    y: Sequence[float | None]
    """As many as ``x``; None and numbers that are not finite leave a gap."""
    tone: int = 1
    """Colour, 1 to 6."""
    dots: bool = False
    """Mark each point, for the few points of a series that is measured now and then."""

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"series '{self.label}': {len(self.x)} x and {len(self.y)} y; give as many of each")


@dataclass(frozen=True, kw_only=True)
class _Column:
    """What is drawn at one x: the mean of the points that fell there, and their range."""

    x: float
    mean: float
    low: float
    high: float
    starts: bool  # no line leads here: the first point, or the first after a gap


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers (1, 2 or 5 times a power of ten apart) within [low, high]; ``low < high``."""
    step = 10.0 ** math.floor(math.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def number(value: float) -> str:
    """A figure in three digits, or in all of its digits before the point: 0.0123, 6.6, 123, 12,345, 2e-06."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def tick_labels(marks: Sequence[float]) -> list[str]:
    """The marks of one axis as text, all with the same number of decimals; very small ones as powers of ten."""
    largest = max(map(abs, marks), default=0.0)
    if len(marks) < 2 or largest < 1e-3:
        return [number(round(mark, 12)) for mark in marks]
    decimals = max(0, -math.floor(math.log10(marks[1] - marks[0]) + 1e-9))
    return [f"{mark + 0.0:,.{decimals}f}" for mark in marks]


def line_chart(series: Sequence[Series], *, title: str, note: str = "", x_label: str = "step", zero: bool = False) -> str:
    """A figure with one line a series over a common x, a key where there are several, and the values of each column on hovering.

    Args:
        series: at least one finite value in all.
        title: the caption.
        note: said beside it: a unit, how to read it.
        x_label: under the axis.
        zero: the y axis starts at 0.

    Raises:
        ValueError: nothing to draw.
    """
    points = [x for line in series for x, y in zip(line.x, line.y, strict=True) if _finite(y)]
    if not points:
        raise ValueError(f"chart '{title}': no finite value in {len(series)} series; leave the chart out")
    x_low, x_high = _widened(min(points), max(points), 0.0)
    columns = [_columns(line, x_low, x_high) for line in series]
    y_low, y_high = _widened(min(c.low for line in columns for c in line), max(c.high for line in columns for c in line), 0.06, zero=zero)

    def across(x: float) -> float:
        return round(_LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT), 2)

    def down(y: float) -> float:
        return round(HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM), 2)

    parts = []
    y_marks, x_marks = ticks(y_low, y_high), ticks(x_low, x_high)
    for y, label in zip(y_marks, tick_labels(y_marks), strict=True):
        parts.append(f'<path d="M{_LEFT} {down(y)}H{WIDTH - _RIGHT}" stroke="var(--grid)"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{down(y) + 4}" text-anchor="end">{label}</text>')
    for x, label in zip(x_marks, tick_labels(x_marks), strict=True):
        place, anchor = (across(x), "middle") if across(x) < WIDTH - 2 * _RIGHT else (WIDTH, "end")  # never past the edge
        parts.append(f'<text x="{place}" y="{HEIGHT - _BOTTOM + 21}" text-anchor="{anchor}">{label}</text>')
    parts.append(f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{escape(x_label)}</text>')
    for i, (line, drawn) in enumerate(zip(series, columns, strict=True)):
        parts += _drawn(line, drawn, across, down, _DASHES[i % len(_DASHES)])
    parts += _hover(series, columns, across, x_label)
    said = f"{title}. " + " ".join(_sentence(line, drawn, x_label) for line, drawn in zip(series, columns, strict=True) if drawn)
    key = "".join(_key(line, _DASHES[i % len(_DASHES)]) for i, line in enumerate(series)) if len(series) > 1 else ""
    return _figure(title, note, key, HEIGHT, said, parts, "")


def _key(line: Series, dash: str) -> str:
    how = f' stroke-dasharray="{dash}"' if dash else ""
    stroke = f'<path d="M0 4H26" stroke="var(--s{line.tone})" stroke-width="2.5"{how}/>'
    return f'<span class="key"><svg class="stroke" viewBox="0 0 26 8" aria-hidden="true">{stroke}</svg>{escape(line.label)}</span>'


def share_bar(parts: Sequence[tuple[str, float]], *, title: str, note: str = "", unit: str = "") -> str:
    """A figure with one bar cut into shares, and a table of them.

    Args:
        parts: (label, amount ≥ 0) in the order drawn; the amounts' sum is the whole and above 0.
        title: the caption.
        note: said beside it.
        unit: of the amounts; stands behind each.
    """
    whole = sum(amount for _, amount in parts)
    if not whole > 0 or any(amount < 0 for _, amount in parts):
        raise ValueError(f"bar '{title}': amounts must not be negative and their sum must be above 0, got {[a for _, a in parts]}")
    drawn, rows, begin = [], [], 0.0
    for i, (label, amount) in enumerate(parts):
        share, tone = amount / whole, f"var(--s{i % 6 + 1})"
        pale = "" if i < 6 else "opacity:.5"  # the colours come round again, paler
        words = f"{escape(label)}: {100 * share:.1f} %"
        drawn.append(
            f'<rect x="{begin:.2f}" width="{share * WIDTH:.2f}" height="28" fill="{tone}" stroke="var(--card)" style="{pale}">'
            f"<title>{words}</title></rect>"
        )
        begin += share * WIDTH
        figure = f"{amount:,.1f} {escape(unit)}".strip()
        cells = f'<td class="number">{100 * share:.1f} %</td><td class="number">{figure}</td>'
        rows.append(f'<tr><td><span class="key"><i style="background:{tone};{pale}"></i>{escape(label)}</span></td>{cells}</tr>')
    said = f"{title}: " + ", ".join(f"{label} {100 * amount / whole:.1f} %" for label, amount in parts)
    return _figure(title, note, "", 28, said, drawn, f'<table class="shares">{"".join(rows)}</table>')


def _figure(title: str, note: str, key: str, height: int, said: str, parts: Sequence[str], after: str) -> str:
    """Caption, key, drawing (``said`` is what a screen reader says of it), and what stands below."""
    beside = f' <span class="faint">{escape(note)}</span>' if note else ""
    drawing = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(said)}">{"".join(parts)}</svg>'
    keys = f'<div class="keys">{key}</div>' if key else ""
    return f"<figure><figcaption>{escape(title)}{beside}</figcaption>{keys}{drawing}{after}</figure>"


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _widened(low: float, high: float, margin: float, *, zero: bool = False) -> tuple[float, float]:
    """A range with some air, and never empty."""
    if zero:
        low = min(low, 0.0)
    if low == high:
        return low - (abs(low) or 1.0) * 0.5, high + (abs(high) or 1.0) * 0.5
    air = (high - low) * margin
    return (low if zero and low == 0 else low - air), high + air


def _columns(line: Series, x_low: float, x_high: float) -> list[_Column]:
    """The line's points, at most ``_COLUMNS`` of them."""
    crowded = sum(map(_finite, line.y)) > 2 * _COLUMNS
    grouped: dict[float, list[tuple[float, float]]] = {}
    gap_before: set[float] = set()
    gap = True
    for x, y in zip(line.x, line.y, strict=True):
        if not _finite(y):
            gap = True
            continue
        key = min(math.floor((x - x_low) / (x_high - x_low) * _COLUMNS), _COLUMNS - 1) if crowded else x
        if key not in grouped and gap:
            gap_before.add(key)
        grouped.setdefault(key, []).append((x, y))  # type: ignore[arg-type]
        gap = False
    found = []
    for key, points in grouped.items():
        xs, ys = zip(*points, strict=True)
        found.append(_Column(x=sum(xs) / len(xs), mean=sum(ys) / len(ys), low=min(ys), high=max(ys), starts=key in gap_before))
    return found


_Place = Callable[[float], float]


def _drawn(line: Series, columns: list[_Column], across: _Place, down: _Place, dash: str) -> list[str]:
    """The line, the pale band of its columns' ranges below it, and its dots."""
    colour, parts = f"var(--s{line.tone})", []
    if any(c.low < c.high for c in columns):
        over = [f"{across(c.x)} {down(c.high)}" for c in columns]
        under = [f"{across(c.x)} {down(c.low)}" for c in reversed(columns)]
        parts.append(f'<path d="M{"L".join(over + under)}Z" fill="{colour}" fill-opacity=".18"/>')
    path = "".join(f"{'M' if c.starts else 'L'}{across(c.x)} {down(c.mean)}" for c in columns)
    how = f' stroke-dasharray="{dash}"' if dash else ' stroke-linecap="round"'
    parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"{how}/>')
    lonely = [c for c, following in zip(columns, [*columns[1:], None], strict=True) if c.starts and (following is None or following.starts)]
    parts += [
        f'<circle cx="{across(c.x)}" cy="{down(c.mean)}" r="{3.5 if line.dots else 2}" fill="{colour}"/>'
        for c in (columns if line.dots else lonely)
    ]
    return parts


def _hover(series: Sequence[Series], columns: list[list[_Column]], across: _Place, x_label: str) -> list[str]:
    """An invisible strip over each x with the values there as its tooltip."""
    said: dict[float, list[str]] = {}
    for line, drawn in zip(series, columns, strict=True):
        for c in drawn:
            figures = number(c.mean) + (f" ({number(c.low)} to {number(c.high)})" if c.low < c.high else "")
            said.setdefault(c.x, []).append(f"{line.label} {figures}")
    places = sorted(said)
    middles = [across((a + b) / 2) for a, b in itertools.pairwise(places)]
    edges = [_LEFT, *middles, WIDTH - _RIGHT]
    strips = []
    for x, (left, right) in zip(places, itertools.pairwise(edges), strict=True):
        words = f"{x_label} {number(round(x, 1))}: " + ", ".join(said[x])
        strips.append(
            f'<rect class="column" x="{left}" y="{_TOP}" width="{round(right - left, 2)}" height="{HEIGHT - _TOP - _BOTTOM}">'
            f"<title>{escape(words)}</title></rect>"
        )
    return strips


def _sentence(line: Series, columns: list[_Column], x_label: str) -> str:
    first, last = columns[0], columns[-1]
    low, high = min(c.low for c in columns), max(c.high for c in columns)
    return (
        f"{line.label}: {number(first.mean)} at {x_label} {number(round(first.x, 1))}, {number(last.mean)} at {x_label} "
        f"{number(round(last.x, 1))}; between {number(low)} and {number(high)}."
    )
