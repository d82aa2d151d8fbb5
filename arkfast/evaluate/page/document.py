"""An evaluation as one HTML page that needs nothing else: no script, no address outside, drawings inside.

Knows the contract of ``summary`` and how to say what the figures say; what was not scored stands first. Texts come from rows and are
escaped; of whole paths only names are shown, save a recording's, which its player needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path, PurePath
from typing import Any

from arkfast import plots
from arkfast.evaluate.page.charts import (
    MOST_POINTS,
    bars,
    bins,
    edges,
    has_seconds,
    label_of,
    lengths,
    metric_of,
    percent,
    scatter,
    tones_of,
)
from arkfast.evaluate.page.clips import clip_markup
from arkfast.evaluate.page.compared import compared
from arkfast.evaluate.page.facts import FAILURES, Facts, Point, gather
from arkfast.evaluate.page.paths import title, without_folders
from arkfast.evaluate.page.style import STYLE
from arkfast.records import JsonRow

_LISTED = 15  # confusions of each kind


def page(summary: JsonRow, rows: Iterable[JsonRow], folder: Path) -> str:
    """The whole page.

    Args:
        summary: as ``summary.json`` has it (``arkfast.evaluate.summary``).
        rows: the scored rows, which are read once; a relative ``audio`` starts from ``folder`` (``page.paths.from_page``).
        folder: where the page will stand. Recordings that are there now get a player.
    """
    facts = gather(summary, rows)
    groups = summary.get("groups") or [summary]
    sections = [
        _header(summary, groups),
        _tiles(summary),
        _failures(summary, facts),
        _rates(groups),
        compared(summary),
        _scatter(facts.points),
        _confusions(facts),
        _worst(facts, folder),
        _method(summary, groups),
    ]
    name = f"Evaluation of {_subject(summary, groups)}"
    return plots.page(name, f"<main>{''.join(sections)}</main>", style=STYLE)


def headline(summary: JsonRow, groups: Sequence[JsonRow]) -> str:
    """What was found, in one sentence without markup."""
    if len(groups) == 1 and groups[0].get("rate") is not None:
        group = groups[0]
        low, high = group.get("rate_low"), group.get("rate_high")
        interval = f" (95 % interval {100 * low:.2f} to {100 * high:.2f})" if low is not None and high is not None else ""
        return f"{metric_of(group)} {percent(group['rate'])}{interval}"
    rated = [group for group in groups if group.get("rate") is not None]
    if not rated:
        return "No error rate: no scored row has a reference with a word in it"
    best, worst = min(rated, key=lambda group: group["rate"]), max(rated, key=lambda group: group["rate"])
    sets = f"{len(groups)} test sets, "
    if best["rate"] == worst["rate"]:
        metrics = " or ".join(dict.fromkeys(metric_of(group) for group in rated))
        where = "each with" if len(rated) == len(groups) else f"{len(rated)} of them with"
        return f"{sets}{where} {metrics} {percent(best['rate'])}"
    ends = (f"{metric_of(group)} {percent(group['rate'])} ({' '.join(label_of(group)).strip()})" for group in (best, worst))
    return f"{sets}from {' to '.join(ends)}"


def _name(path: object) -> str:
    return PurePath(str(path)).name if path else ""


def _subject(summary: JsonRow, groups: Sequence[JsonRow]) -> str:
    return _name(summary.get("model_path")) or _name(summary.get("input")) or label_of(groups[0])[0]


def _header(summary: JsonRow, groups: Sequence[JsonRow]) -> str:
    model, source = _name(summary.get("model_path")), _name(summary.get("input"))
    of = " on ".join(part for part in (model, source) if part)
    lead = f"{headline(summary, groups)}."
    return f'<header><h1>{escape(of or "Evaluation")}</h1><p class="lead">{escape(lead)}</p></header>'


def _tiles(summary: JsonRow) -> str:
    """Coverage and whatever was left out, before any rate."""
    count = {name: int(summary.get(name) or 0) for name in ("utterances", "scored", "failed", "without_reference", "truncated")}
    tiles = [
        _tile(
            "scored rows",
            f"{count['scored']:,} of {count['utterances']:,}",
            f"coverage {percent(summary.get('coverage'))}",
            alert=count["scored"] < count["utterances"],
        ),
        _tile(
            "failed",
            f"{count['failed']:,}",
            _failure_note(summary) if count["failed"] else "every row has a transcript",
            alert=count["failed"] > 0,
        ),
    ]
    if count["without_reference"]:
        tiles.append(_tile("without a reference", f"{count['without_reference']:,}", "transcribed, but not scored"))
    note = "at the token limit or in a loop; scored as they are"
    tiles.append(_tile("cut short", f"{count['truncated']:,}", note, alert=count["truncated"] > 0))
    empty = int(summary.get("empty_references") or 0)
    if empty:
        words = f"{int(summary.get('insertions_on_empty_references') or 0):,} units written where nothing was said"
        tiles.append(_tile("hallucinated", f"{int(summary.get('hallucinated') or 0):,} of {empty:,} silences", words))
    if summary.get("rtfx") is not None:
        whole = summary.get("rtfx_end_to_end")
        note = "by processing time, which leaves out the decoding of files and workers' log-mel"
        note += f"; {plots.number(whole)} end to end" if whole is not None else ""
        tiles.append(_tile("RTFx", plots.number(summary["rtfx"]), note))
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _failure_note(summary: JsonRow) -> str:
    rate = summary.get("rate_with_failures")
    return "left out of the rates" if rate is None else f"counted as deletions: {percent(rate)}"


def _tile(name: str, value: str, note: str, *, alert: bool = False) -> str:
    return f"<div{' class=alert' if alert else ''}><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"


def _failures(summary: JsonRow, facts: Facts) -> str:
    if not facts.failed:
        return ""
    items = "".join(
        f"<li><b>{escape(title(row))}</b> {escape(without_folders(str(row.get('error') or 'no transcript')))}</li>" for row in facts.failed
    )
    failed = int(summary.get("failed") or len(facts.failed))
    more = f"<p class=faint>The first {FAILURES} of {failed:,}.</p>" if failed > len(facts.failed) else ""
    return f'<details><summary>Failed rows and why</summary><ul class="failed">{items}</ul>{more}</details>'


def _rates(groups: Sequence[JsonRow]) -> str:
    note = "Lower is better. The thin line is the 95 % bootstrap interval: how far other utterances of the same kind could move the rate."
    if any(group.get("failed") for group in groups):
        note += " The dashed mark is the rate if failed rows were empty transcripts."
    head = [
        *("test set", "language", "metric", "rate", "95 % interval", "WER", "CER", "MER"),
        *("sub", "del", "ins", "reference", "scored", "rows"),
    ]
    body = []
    for group in groups:
        name, language = label_of(group)
        low, high = group.get("rate_low"), group.get("rate_high")
        figures = [
            percent(group.get("rate")),
            "–" if low is None or high is None else f"{100 * low:.2f} – {100 * high:.2f}",
            *(percent(group.get(key)) for key in ("wer", "cer", "mer")),
            *(_count(group.get(key)) for key in ("substitutions", "deletions", "insertions", "reference_units", "scored", "utterances")),
        ]
        words = "".join(f"<td>{escape(cell)}</td>" for cell in (name, language, metric_of(group)))
        body.append(f"<tr>{words}{''.join(f'<td class=number>{escape(figure)}</td>' for figure in figures)}</tr>")
    heads = "".join(f'<th scope="col"{"" if i < 3 else " class=number"}>{escape(cell)}</th>' for i, cell in enumerate(head))
    table = _wide("All figures", f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>")
    return f'<section><h2>Error rates</h2><p class="faint">{escape(note)}</p><div class="card">{bars(groups)}{table}</div></section>'


def _count(value: object) -> str:
    return "–" if value is None else f"{value:,}"


def _wide(label: str, table: str) -> str:
    """A table behind a summary line, which scrolls on its own where it is too wide, by keyboard too."""
    return (
        f"<details><summary>{escape(label)}</summary>"
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(label)}">{table}</div></details>'
    )


def _scatter(points: Sequence[Point]) -> str:
    if not points:
        return ""
    seconds = has_seconds(points)
    many = len(points) > MOST_POINTS
    note = f"Each dot is {'a clip, or several, its area how many' if many else 'a clip'}; across, "
    note += f"{'seconds of audio' if seconds else 'units in the reference'}. A line pools ten parts of equally many clips."
    top, right = edges(points)
    above, longer = sum(p.errors > top * p.units for p in points), sum(x > right for x, _ in lengths(points))
    clips, stand = ("clip", "stands") if above == 1 else ("clips", "stand")
    note += f" {above:,} {clips} with more than {percent(top, 0)} {stand} at the top edge." if above else ""
    note += f" {longer:,} longer {'one stands' if longer == 1 else 'ones stand'} at the right edge." if longer else ""
    tones = tones_of(points)
    shared = Counter(tones.values())
    names = {tone: language if shared[tone] == 1 else "others" for language, tone in tones.items()}
    keys = [f'<span class="key"><i style="background:var(--s{tone})"></i>{escape(name)}</span>' for tone, name in sorted(names.items())]
    unit = "seconds" if seconds else "reference units"
    rows = "".join(
        f"<tr><td>{plots.number(round(place.low, 2))} to {plots.number(round(place.high, 2))}</td>"
        f"<td class=number>{place.clips:,}</td><td class=number>{percent(place.rate)}</td></tr>"
        for place in bins(lengths(points))
    )
    head = f'<tr><th scope="col">{unit}</th><th scope="col" class=number>clips</th><th scope="col" class=number>rate</th></tr>'
    table = _wide("Error rate by length", f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>")
    return (
        f'<section><h2>Errors over length</h2><p class="faint">{escape(note)}</p>'
        f'<div class="card"><p class="keys">{"".join(keys)}</p>{scatter(points)}{table}</div></section>'
    )


def _confusions(facts: Facts) -> str:
    arrow = '<span class="arrow" aria-label="heard as">→</span>'
    # bdi: said stays left of heard, whichever way their script runs
    lists = [
        _list(
            "Substituted",
            2,
            [(f"<bdi>{escape(a)}</bdi>{arrow}<bdi>{escape(b)}</bdi>", n) for (a, b), n in _most(facts.substitutions)],
            facts.substitutions,
        ),
        _list("Deleted", 4, [(escape(unit), n) for unit, n in _most(facts.deletions)], facts.deletions),
        _list("Inserted", 3, [(escape(unit), n) for unit, n in _most(facts.insertions)], facts.insertions),
    ]
    note = f"The {_LISTED} most frequent of each kind, after normalisation; said, then heard."
    return f'<section><h2>Confusions</h2><p class="faint">{note}</p><div class="lists">{"".join(lists)}</div></section>'


def _most(counted: Counter[Any]) -> list[tuple[Any, int]]:
    """The most frequent; of equally frequent ones the same on every run."""
    return sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:_LISTED]


def _list(title: str, tone: int, items: Sequence[tuple[str, int]], counted: Counter[Any]) -> str:
    most = max((count for _, count in items), default=1)
    lines = "".join(f'<li style="--share:{100 * n / most:.1f}%;--tone:var(--s{tone})"><span>{m}</span><b>{n:,}</b></li>' for m, n in items)
    of = f"{counted.total():,} in all, {len(counted):,} different"
    body = f"<ol>{lines}</ol>" if items else '<p class="none">none</p>'
    return f'<div class="card"><h3>{title}</h3><span class="faint">{of}</span>{body}</div>'


def _worst(facts: Facts, folder: Path) -> str:
    if not facts.worst:
        return '<section><h2>Worst clips</h2><p class="none">No scored clip has an error.</p></section>'
    key = '<span class="key"><del>said</del> and not heard</span><span class="key"><ins>heard</ins> and not said</span>'
    note = "Those with the most errors beyond what their test set's rate gives a reference of their length; texts after normalisation."
    clips = "".join(clip_markup(clip, folder) for clip in facts.worst)
    return f'<section><h2>Worst clips</h2><p class="faint">{note}</p><p>{key}</p><div class="clips">{clips}</div></section>'


def _method(summary: JsonRow, groups: Sequence[JsonRow]) -> str:
    normalizer = summary.get("normalizer")
    if isinstance(normalizer, Mapping):
        parts = [str(normalizer.get("name")), f"version {normalizer.get('version')}", f"sha256 {str(normalizer.get('sha256'))[:16]}"]
        normalizer = ", ".join(parts)
    rules: dict[str, list[str]] = {}
    for group in groups:
        rules.setdefault(f"{group.get('unit')} ({group.get('unit_rule')})", []).append(" ".join(label_of(group)).strip())
    settings = {
        "normaliser": normalizer,
        "units": "; ".join(f"{rule}: {', '.join(names)}" for rule, names in rules.items()),
        "interval": f"{summary.get('resamples', '–')} bootstrap resamples over {summary.get('group_by') or 'utterances'}",
        "model": _name(summary.get("model_path")),
        "commit": summary.get("model_commit"),
        "rows": _name(summary.get("output") or summary.get("input")),
    }
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in settings.items() if value)
    return f'<section><h2>How it was counted</h2><dl class="plain card">{lines}</dl></section>'
