"""Another system or an earlier evaluation beside this one: the verdict as the page's first sentence, and the tables of differences.

Nothing is decided here; ``summary``'s ``comparison`` and ``gate`` hold what was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from arkfast.evaluate.page.charts import label_of, metric_of
from arkfast.records import JsonRow
from arkfast.reports import Cell, Column, Row, Table, interval, percent, points


@dataclass(frozen=True, kw_only=True)
class Hero:
    """The page's one figure."""

    figure: str
    unit: str
    verdict: str
    what: str
    tone: str


@dataclass(frozen=True, kw_only=True)
class Against:
    """One table of differences, and the sentence above it."""

    said: str
    table: Table


def other_name(summary: JsonRow) -> str:
    """What the page calls the system that it compares with; empty where there is none."""
    comparison, gate = summary.get("comparison"), summary.get("gate")
    return _name(comparison["other"]) if comparison else _name(gate["baseline"]) if gate else ""


def plain_hero(summary: JsonRow, groups: Sequence[JsonRow]) -> Hero:
    """The rate over all rows, where nothing was compared; of sets that are counted in different units, the lowest and the highest."""
    rates = [group["rate"] for group in groups if group.get("rate") is not None]
    if len(groups) > 1 and rates and (summary.get("rate") is None or summary.get("metric") == "joint"):
        ends = [f"{100 * min(rates):.2f}"] if max(rates) > min(rates) else []
        unit = f"over {len(groups)} test sets"
        return Hero(figure=" to ".join([*ends, percent(max(rates))]), unit=unit, verdict="", what="error rates of the sets", tone="")
    of = groups[0] if len(groups) == 1 else summary
    sets = f" over {len(groups)} test sets" if len(groups) > 1 else ""
    if of.get("rate") is None:
        return Hero(figure="no error rate", unit="", verdict="", what="No scored row has a reference with a word in it.", tone="")
    what = f"95 % interval {interval(of.get('rate_low'), of.get('rate_high'))}, " if of.get("rate_low") is not None else ""
    what += f"{_count(of.get('reference_units'))} units of reference in {_count(of.get('scored'))} clips"
    return Hero(figure=percent(of["rate"]), unit=metric_of(of) + sets, verdict="", what=what, tone="")


def verdict_hero(summary: JsonRow) -> Hero | None:
    """The gate's verdict, else what the comparison came to, with both rates; None where nothing was compared."""
    comparison, gate = summary.get("comparison"), summary.get("gate")
    if gate:
        entry, name = gate["entries"][0], _name(gate["baseline"])
        allowed = f"{gate['max_regression_points']:g} percentage points"
        passed = bool(gate.get("passed"))
        verdict = f"Passed: nothing is worse than {name} by more than {allowed}" if passed else (
            f"Worse than allowed: {', '.join(_failing(gate['entries']))} by more than {allowed} against {name}"
        )  # fmt: skip
        how = "on the same rows" if gate.get("paired") else "by the rates alone, not row by row"
        return _hero(entry, (entry["rate"], entry["baseline_rate"]), verdict, "pass" if passed else "bad", how)
    if comparison:
        name, (low, high) = _name(comparison["other"]), (comparison["low"], comparison["high"])
        verdict, tone = (
            (f"Fewer errors than {name}", "pass") if high < 0 else (f"More errors than {name}", "bad") if low > 0
            else (f"This test does not tell the system and {name} apart", "")
        )  # fmt: skip
        return _hero(comparison, comparison["rates"], verdict, tone, f"on {comparison['rows']:,} rows that both have scored")
    return None


def against(summary: JsonRow) -> list[Against]:
    """The tables: of the gate, then of the comparison."""
    comparison, gate = summary.get("comparison"), summary.get("gate")
    found = []
    if gate:
        name = _name(gate["baseline"])
        how = "on the same rows" if gate.get("paired") else "by the rates alone, not row by row"
        said = f"Against the baseline {name}, {how}; at most +{gate['max_regression_points']:g} percentage points are allowed."
        entries = [(entry, (entry["rate"], entry["baseline_rate"])) for entry in gate["entries"]]
        found.append(Against(said=said, table=_table(f"Differences from the baseline {name}", name, entries, verdicts=True)))
    if comparison:
        name = _name(comparison["other"])
        left = f"; {comparison['left_out']:,} were left out" if comparison.get("left_out") else ""
        said = f"Against {name}, on the {comparison['rows']:,} rows that both have scored{left}."
        entries = [(entry, entry["rates"]) for entry in (comparison, *comparison.get("groups", []))]
        found.append(Against(said=said, table=_table(f"Differences from {name}", name, entries, verdicts=False)))
    return found


def _hero(entry: JsonRow, rates: Sequence[float | None], verdict: str, tone: str, how: str) -> Hero:
    ours, theirs = rates
    what = f"{metric_of(entry)}, {points(entry.get('difference'))} points"
    what += f", 95 % interval {points(entry['low'], entry['high'])}" if entry.get("low") is not None else ""
    return Hero(figure=percent(ours), unit=f"against {percent(theirs)}", verdict=f"{verdict}.", what=f"{what}; {how}", tone=tone)


def _table(label: str, name: str, entries: Sequence[tuple[JsonRow, Sequence[float | None]]], *, verdicts: bool) -> Table:
    columns = ["this", name, "difference, points", "95 % interval, points", "p"]
    rows = []
    for entry, (ours, theirs) in entries:
        test_set, language = label_of(entry)
        p, worse = entry.get("p_value"), entry.get("difference_with_failures")
        note = f"{points(worse)} if failures count" if worse is not None and worse > entry["difference"] else ""
        cells = [
            Cell(text=test_set, note=language),
            Cell(text=percent(ours)),
            Cell(text=percent(theirs)),
            Cell(text=points(entry.get("difference")), note=note),
            Cell(text="–" if entry.get("low") is None else points(entry["low"], entry["high"])),
            Cell(text="–" if p is None else f"{p:.4f}"),
        ]
        if verdicts:
            passed = bool(entry.get("passed"))
            cells.append(Cell(text="passed" if passed else "worse than allowed", tone="pass" if passed else "bad"))
        rows.append(Row(cells=cells))
    heads = [Column(name="test set"), *(Column(name=column, is_number=True) for column in columns)]
    return Table(label=label, columns=[*heads, Column(name="verdict")] if verdicts else heads, rows=rows)


def _failing(entries: Sequence[JsonRow]) -> list[str]:
    return [" ".join(label_of(entry)).strip() for entry in entries if not entry.get("passed")]


def _name(path: object) -> str:
    return PurePath(str(path)).name


def _count(value: object) -> str:
    return "–" if value is None else f"{value:,}"
