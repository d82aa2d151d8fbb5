"""Line charts and pages without a plotting library: SVG as text, one HTML shell.

Knows scales, ticks, colours for light and dark, and how to escape; knows nothing of what is drawn. A page made here holds all it needs:
no script, no font, no address outside, and a policy that forbids the browser to fetch one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

# A chart's own units. Its text stays legible where the page scales it down to a phone's 390 pixels: 350 / 420 · 12.5 = 10 pixels.
WIDTH, HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 10, 40
_COLUMNS = 120
"""Most points that a line has; more are drawn as the mean of each column between its least and its greatest."""

# Okabe and Ito's hues, darkened on white and lightened on black until a thin line has a contrast of at least 3 : 1.
STYLE = """
:root { color-scheme: light dark; --ink: #1d2327; --faint: #5d6870; --paper: #f6f7f8; --card: #ffffff; --grid: #dfe3e6;
  --s1: #0072b2; --s2: #c04a00; --s3: #00795a; --s4: #a0448a; --s5: #8a6100; --s6: #4b5563; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebed; --faint: #a0abb3; --paper: #14181b; --card: #1c2226; --grid: #343c42;
  --s1: #56b4e9; --s2: #ff8a4c; --s3: #34c79a; --s4: #e290cb; --s5: #e6b422; --s6: #9aa7b4; --bad: #ff8f82; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 80rem; margin: 0 auto;
  padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; line-height: 1.3; margin: 0 0 .3rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .8rem; }
.faint { color: var(--faint); } .bad { color: var(--bad); } .wide { overflow-x: auto; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
figure { margin: 0; padding: .8rem; background: var(--card); border: 1px solid var(--grid); border-radius: .6rem; min-width: 0; }
figcaption { font-weight: 600; } figcaption .faint { font-weight: 400; font-size: .875rem; }
svg { display: block; width: 100%; height: auto; } svg text { font: 12.5px system-ui, sans-serif; fill: var(--faint); }
.key { display: inline-flex; align-items: center; gap: .4rem; margin-right: 1rem; font-size: .875rem; color: var(--faint); }
.key i { width: .9rem; height: .25rem; border-radius: .2rem; flex: none; }
.column { fill: transparent; } .column:hover { fill: var(--ink); fill-opacity: .1; }
table { border-collapse: collapse; font-size: .9375rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }
table.shares { width: 100%; margin-top: .5rem; }
tr + tr > * { border-top: 1px solid var(--grid); } td.number, th.number { text-align: right; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src 'self' file: data:"


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


def page(title: str, body: str, *, style: str = "") -> str:
    """A whole HTML page around ``body`` (markup); ``style`` is CSS that follows the common one."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers (1, 2 or 5 times a power of ten apart) within [low, high]; ``low < high``."""
    step = 10.0 ** math.floor(math.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def number(value: float) -> str:
    """A figure as short as three to four digits tell it: 0.0123, 12,345, 2e-06."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2g}" if size < 1e-3 else f"{value:.4g}" if size < 1 else f"{value:.3f}".rstrip("0").rstrip(".")


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
    for y in ticks(y_low, y_high):
        parts.append(f'<path d="M{_LEFT} {down(y)}H{WIDTH - _RIGHT}" stroke="var(--grid)"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{down(y) + 4}" text-anchor="end">{number(round(y, 12))}</text>')
    for x in ticks(x_low, x_high):
        place, anchor = (across(x), "middle") if across(x) < WIDTH - 2 * _RIGHT else (WIDTH, "end")  # never past the edge
        parts.append(f'<text x="{place}" y="{HEIGHT - _BOTTOM + 17}" text-anchor="{anchor}">{number(round(x, 12))}</text>')
    parts.append(f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{escape(x_label)}</text>')
    for line, drawn in zip(series, columns, strict=True):
        parts += _drawn(line, drawn, across, down)
    parts += _hover(series, columns, across, x_label)
    said = f"{title}. " + " ".join(_sentence(line, drawn, x_label) for line, drawn in zip(series, columns, strict=True) if drawn)
    key = "".join(f'<span class="key"><i style="background:var(--s{s.tone})"></i>{escape(s.label)}</span>' for s in series)
    return _figure(title, note, key if len(series) > 1 else "", HEIGHT, said, parts, "")


def share_bar(parts: Sequence[tuple[str, float]], *, title: str, note: str = "") -> str:
    """A figure with one bar cut into shares, and a table of them.

    Args:
        parts: (label, amount ≥ 0) in the order drawn; the amounts' sum is the whole and above 0.
        title: the caption.
        note: said beside it.
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
        cells = f'<td class="number">{100 * share:.1f} %</td><td class="number">{number(amount)}</td>'
        rows.append(f'<tr><td><span class="key"><i style="background:{tone};{pale}"></i>{escape(label)}</span></td>{cells}</tr>')
    said = f"{title}: " + ", ".join(f"{label} {100 * amount / whole:.1f} %" for label, amount in parts)
    return _figure(title, note, "", 28, said, drawn, f'<table class="shares">{"".join(rows)}</table>')


def _figure(title: str, note: str, key: str, height: int, said: str, parts: Sequence[str], after: str) -> str:
    """Caption, key, drawing (``said`` is what a screen reader says of it), and what stands below."""
    beside = f' <span class="faint">{escape(note)}</span>' if note else ""
    drawing = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(said)}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{escape(title)}{beside}</figcaption><div>{key}</div>{drawing}{after}</figure>"


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


def _drawn(line: Series, columns: list[_Column], across: _Place, down: _Place) -> list[str]:
    """The line, the pale band of its columns' ranges below it, and its dots."""
    colour, parts = f"var(--s{line.tone})", []
    if any(c.low < c.high for c in columns):
        over = [f"{across(c.x)} {down(c.high)}" for c in columns]
        under = [f"{across(c.x)} {down(c.low)}" for c in reversed(columns)]
        parts.append(f'<path d="M{"L".join(over + under)}Z" fill="{colour}" fill-opacity=".18"/>')
    path = "".join(f"{'M' if c.starts else 'L'}{across(c.x)} {down(c.mean)}" for c in columns)
    parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round" stroke-linecap="round"/>')
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
