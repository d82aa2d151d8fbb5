"""The page's section on another system or an earlier evaluation: differences, their intervals, the gate's verdict.

Knows ``summary``'s ``comparison`` and ``gate``; decides nothing, but says what they decided.
"""

from __future__ import annotations

from html import escape
from pathlib import PurePath

from arkfast.evaluate.page.charts import label_of
from arkfast.records import JsonRow


def compared(summary: JsonRow) -> str:
    """The section; empty where nothing was compared."""
    comparison, gate = summary.get("comparison"), summary.get("gate")
    parts = []
    if gate:
        allowed = f"at most +{gate['max_regression_points']:g} percentage points are allowed"
        word = '<b class="pass">passed</b>' if gate.get("passed") else '<b class="bad">worse than allowed</b>'
        how = "on the same rows" if gate.get("paired") else "by the rates alone, not row by row"
        name = escape(PurePath(str(gate["baseline"])).name)
        parts.append(f"<p>Against the baseline {name}, {how}: {word}; {escape(allowed)}.</p>{_table(gate['entries'])}")
    if comparison:
        name = escape(PurePath(str(comparison["other"])).name)
        left = f", {comparison['left_out']:,} left out" if comparison.get("left_out") else ""
        entries = [comparison, *comparison.get("groups", [])]
        parts.append(f"<p>Against {name}, on {comparison['rows']:,} rows that both have scored{left}.</p>{_table(entries)}")
    if not parts:
        return ""
    note = "Differences in percentage points, this system minus the other: below zero is better. p is the paired test's."
    return f'<section><h2>Compared</h2><p class="faint">{note}</p><div class="card">{"".join(parts)}</div></section>'


def _table(entries: list[JsonRow]) -> str:
    rows = []
    for entry in entries:
        name, language = label_of(entry)
        low, high = entry.get("low"), entry.get("high")
        interval = "–" if low is None or high is None else f"{100 * low:+.2f} to {100 * high:+.2f}"
        p = entry.get("p_value")
        figures = [_points(entry.get("difference")), interval, "–" if p is None else f"{p:.4f}"]
        words = f'{escape(name)} <span class="faint">{escape(language)}</span>'
        rows.append(f"<tr><td>{words}</td>{''.join(f'<td class=number>{figure}</td>' for figure in figures)}</tr>")
    columns = (("test set", ""), *((name, " class=number") for name in ("difference", "95 % interval", "p")))
    heads = "".join(f'<th scope="col"{kind}>{name}</th>' for name, kind in columns)
    label = "Differences"
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{label}">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _points(difference: float | None) -> str:
    return "–" if difference is None else f"{100 * difference:+.2f}"
