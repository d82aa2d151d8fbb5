"""What stands on the page of an evaluation: the verdict or the rate first, then what was not scored, then everything else.

The figures are ``summary``'s and the rows'. Of whole paths only names are shown, save a recording's, which its player needs.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from arkfast.evaluate.page.charts import (
    MOST_POINTS,
    bars,
    bins,
    edges,
    has_seconds,
    label_of,
    length_unit,
    lengths,
    metric_of,
    scatter,
    tones_of,
)
from arkfast.evaluate.page.clips import changed, shown
from arkfast.evaluate.page.compared import against, other_name, plain_hero, verdict_hero
from arkfast.evaluate.page.facts import FAILURES, Facts, Point, gather
from arkfast.evaluate.page.paths import title, without_folders
from arkfast.records import JsonRow
from arkfast.reports import Cell, Column, Row, Table, dated, interval, percent, render, times

_LISTED = 15  # confusions of each kind


def page(
    summary: JsonRow, rows: Iterable[JsonRow], folder: Path, *, others: Iterable[JsonRow] | None = None, day: datetime.date | None = None
) -> str:
    """The whole page.

    Args:
        summary: as ``summary.json`` has it (``arkfast.evaluate.summary``).
        rows: the scored rows, which are read once; a relative ``audio`` starts from ``folder`` (``page.paths.from_page``).
        folder: where the page will stand. Recordings that are there now get a player.
        others: the scored rows of the system that is compared with, in the same order; the clips that changed are listed.
        day: of the evaluation; today where none is given.
    """
    facts = gather(summary, rows, others)
    groups = summary.get("groups") or [summary]
    model, source = _name(summary.get("model_path")), _name(summary.get("input"))
    source = source or (f"{len(groups)} test sets" if len(groups) > 1 else "")
    name = " on ".join(part for part in (model, source) if part) or label_of(groups[0])[0]
    when = dated(day or datetime.date.today())
    other = other_name(summary)
    drawings = {}
    if len(groups) > 1:
        drawings["bars"] = bars(groups)
    if facts.points:
        drawings["scatter"] = scatter(facts.points)
    return render(
        "evaluation.html",
        title=f"{name}, {when}: arkfast evaluation",
        drawings={"bars": "", "scatter": "", **drawings},
        name=name,
        about=[f"model {model}" if model else "transcripts as given", f"data {source}" if source else "", when],
        hero=verdict_hero(summary) or plain_hero(summary, groups),
        lead=f"{headline(summary, groups)}." if len(groups) > 1 or other else "",
        tiles=_tiles(summary),
        failed=[(title(row), without_folders(str(row.get("error") or "no transcript"))) for row in facts.failed],
        failed_more=_failed_more(summary, facts),
        against=against(summary),
        other=other,
        changed=facts.changed if others is not None else None,
        gained=[changed(change, folder, other) for change in facts.gained],
        lost=[changed(change, folder, other) for change in facts.lost],
        rates_note=_rates_note(groups),
        rates=_rates(groups),
        scatter_note=_scatter_note(facts.points) if facts.points else "",
        scatter_keys=_scatter_keys(facts.points),
        by_length=_by_length(facts.points),
        listed=_LISTED,
        lists=_confusions(facts),
        worst=[shown(clip, folder) for clip in facts.worst],
        method=_method(summary, groups),
    )


def headline(summary: JsonRow, groups: Sequence[JsonRow]) -> str:
    """What was found, in one sentence."""
    if len(groups) == 1 and groups[0].get("rate") is not None:
        group = groups[0]
        low, high = group.get("rate_low"), group.get("rate_high")
        ends = f" (95 % interval {interval(low, high)})" if low is not None else ""
        return f"{metric_of(group)} {percent(group['rate'])}{ends}"
    rated = [group for group in groups if group.get("rate") is not None]
    if not rated:
        return "No error rate: no scored row has a reference with a word in it"
    best, worst = min(rated, key=lambda group: group["rate"]), max(rated, key=lambda group: group["rate"])
    sets = f"{len(groups)} test sets, "
    if best["rate"] == worst["rate"]:
        metrics = " or ".join(dict.fromkeys(metric_of(group) for group in rated))
        where = "each with" if len(rated) == len(groups) else f"{len(rated)} of them with"
        return f"{sets}{where} {metrics} {percent(best['rate'])}"
    ends = " to ".join(f"{metric_of(group)} {percent(group['rate'])} ({' '.join(label_of(group)).strip()})" for group in (best, worst))
    return f"{sets}from {ends}"


def _name(path: object) -> str:
    return PurePath(str(path)).name if path else ""


def _tiles(summary: JsonRow) -> list[dict[str, object]]:
    """Coverage and whatever was left out; what is in order is said in few words."""
    count = {name: int(summary.get(name) or 0) for name in ("utterances", "scored", "failed", "without_reference", "truncated")}
    coverage = f"coverage {percent(summary.get('coverage'))}"
    tiles = [
        _tile("rows scored", f"{count['scored']:,} of {count['utterances']:,}", coverage, alert=count["scored"] < count["utterances"]),
        _tile("failed", f"{count['failed']:,}" if count["failed"] else "none",
              _failure_note(summary) if count["failed"] else "", alert=count["failed"] > 0),
    ]  # fmt: skip
    if count["without_reference"]:
        tiles.append(_tile("without a reference", f"{count['without_reference']:,}", "transcribed, but not scored"))
    note = "at the token limit or in a loop; scored as they are" if count["truncated"] else ""
    tiles.append(_tile("cut short", f"{count['truncated']:,}" if count["truncated"] else "none", note, alert=count["truncated"] > 0))
    empty = int(summary.get("empty_references") or 0)
    if empty:
        words = f"{int(summary.get('insertions_on_empty_references') or 0):,} units written where nothing was said"
        tiles.append(_tile("hallucinated", f"{int(summary.get('hallucinated') or 0):,} of {empty:,} silences", words))
    if summary.get("rtfx") is not None:
        whole = summary.get("rtfx_end_to_end")
        note = "faster than real time by processing time, which leaves out the decoding of files and workers' log-mel"
        note += f"; {times(whole)} end to end" if whole is not None else ""
        tiles.append(_tile("RTFx", times(summary["rtfx"]), note))
    return tiles


def _failure_note(summary: JsonRow) -> str:
    rate = summary.get("rate_with_failures")
    return "left out of the rates" if rate is None else f"counted as deletions: {percent(rate)}"


def _tile(name: str, value: str, note: str, *, alert: bool = False) -> dict[str, object]:
    return {"name": name, "value": value, "note": note, "alert": alert}


def _failed_more(summary: JsonRow, facts: Facts) -> str:
    failed = int(summary.get("failed") or len(facts.failed))
    return f"The first {FAILURES} of {failed:,}." if failed > len(facts.failed) else ""


def _rates_note(groups: Sequence[JsonRow]) -> str:
    note = "Lower is better."
    if len(groups) > 1:
        note += " The thin line is the 95 % bootstrap interval: how far other utterances of the same kind could move the rate."
        if any(group.get("failed") for group in groups):
            note += " The dashed mark is the rate if failed rows were empty transcripts."
    return note


def _rates(groups: Sequence[JsonRow]) -> Table:
    words = ("test set", "language", "metric")
    figures = ("rate", "95 % interval", "WER", "CER", "MER", "wrong", "left out", "added", "reference", "scored", "rows")
    rows = []
    for group in groups:
        name, language = label_of(group)
        cells = [
            *(name, language, metric_of(group), percent(group.get("rate")), interval(group.get("rate_low"), group.get("rate_high"))),
            *(percent(group.get(key)) for key in ("wer", "cer", "mer")),
            *(_count(group.get(key)) for key in ("substitutions", "deletions", "insertions", "reference_units", "scored", "utterances")),
        ]
        rows.append(Row(cells=[Cell(text=cell) for cell in cells]))
    columns = [*(Column(name=word) for word in words), *(Column(name=figure, is_number=True) for figure in figures)]
    return Table(label="All figures", columns=columns, rows=rows, scrolls=True)


def _count(value: object) -> str:
    return "–" if value is None else f"{value:,}"


def _scatter_note(points: Sequence[Point]) -> str:
    many = len(points) > MOST_POINTS
    note = f"Each dot is {'a clip, or several, its area how many' if many else 'a clip'}; across, "
    note += f"{'seconds of audio' if has_seconds(points) else 'units in the reference'}. A line pools ten parts of equally many clips."
    top, right = edges(points)
    above, longer = sum(p.errors > top * p.units for p in points), sum(x > right for x, _ in lengths(points))
    clips, stand = ("clip", "stands") if above == 1 else ("clips", "stand")
    note += f" {above:,} {clips} with more than {percent(top, 0)} {stand} at the top edge." if above else ""
    note += f" {longer:,} longer {'one stands' if longer == 1 else 'ones stand'} at the right edge." if longer else ""
    return note


def _scatter_keys(points: Sequence[Point]) -> list[tuple[int, str]]:
    """(colour, language) where the drawing has several."""
    tones = tones_of(points)
    shared = Counter(tones.values())
    names = {tone: (language or "no language given") if shared[tone] == 1 else "others" for language, tone in tones.items()}
    return sorted(names.items()) if len(names) > 1 else []


def _by_length(points: Sequence[Point]) -> Table | None:
    if not points:
        return None
    digits = 1 if has_seconds(points) else 0
    rows = [
        Row(cells=[
            Cell(text=f"{place.low:.{digits}f} to {place.high:.{digits}f}"),
            Cell(text=f"{place.clips:,}"),
            Cell(text=percent(place.rate)),
        ])
        for place in bins(lengths(points))
    ]  # fmt: skip
    columns = [Column(name=length_unit(points)), Column(name="clips", is_number=True), Column(name="rate", is_number=True)]
    return Table(label="Error rate by length", columns=columns, rows=rows)


def _confusions(facts: Facts) -> list[dict[str, object]]:
    return [
        _list("Wrong", 2, [((a, b), n) for (a, b), n in _most(facts.substitutions)], facts.substitutions),
        _list("Left out", 4, [((unit,), n) for unit, n in _most(facts.deletions)], facts.deletions),
        _list("Added", 3, [((unit,), n) for unit, n in _most(facts.insertions)], facts.insertions),
    ]


def _most(counted: Counter[Any]) -> list[tuple[Any, int]]:
    """The most frequent; of equally frequent ones the same on every run."""
    return sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:_LISTED]


def _list(name: str, tone: int, items: Sequence[tuple[tuple[str, ...], int]], counted: Counter[Any]) -> dict[str, object]:
    most = max((count for _, count in items), default=1)
    shown = [{"words": words, "count": f"{n:,}", "share": f"{100 * n / most:.1f}%"} for words, n in items]
    return {"name": name, "tone": tone, "of": f"{counted.total():,} in all, {len(counted):,} different", "items": shown}


def _method(summary: JsonRow, groups: Sequence[JsonRow]) -> list[tuple[str, str]]:
    normalizer = summary.get("normalizer")
    if isinstance(normalizer, Mapping):
        parts = [str(normalizer.get("name")), f"version {normalizer.get('version')}", f"sha256 {str(normalizer.get('sha256'))[:16]}"]
        if normalizer.get("options"):
            parts.append(f"options {', '.join(normalizer['options'])}")
        normalizer = ", ".join(parts)
    rules: dict[str, list[str]] = {}
    for group in groups:
        rules.setdefault(f"{group.get('unit')} ({group.get('unit_rule')})", []).append(" ".join(label_of(group)).strip())
    settings = {
        "normaliser": normalizer,
        "units": "; ".join(f"{rule}: {', '.join(names)}" for rule, names in rules.items()),
        "interval": f"{_count(summary.get('resamples'))} bootstrap resamples over {summary.get('group_by') or 'utterances'}",
        "model": _name(summary.get("model_path")),
        "commit": summary.get("model_commit"),
        "rows": _name(summary.get("output") or summary.get("input")),
    }
    return [(name, str(value)) for name, value in settings.items() if value]
