"""Scores as aligned lines of plain text.

A line about rows that were left out of the rates stands there only where some were.
"""

from __future__ import annotations

import math

from arkfast.evaluate.scores import Scores


def text_table(scores: Scores) -> str:
    """All rows together, then a line for each (preset, language) where there are several."""
    counts, units = (
        scores.counts,
        "units" if scores.unit == "joint" else f"{scores.unit} units" if scores.unit == "mixed" else f"{scores.unit}s",
    )
    low, high = scores.interval
    others = [(name, rate) for name, rate in (("WER", scores.wer), ("CER", scores.cer), ("MER", scores.mer)) if name != scores.name]
    lines = [
        (scores.name, f"{_percent(scores.rate)}  (95 % interval {_percent(low)} to {_percent(high)})"),
        *((name, _percent(rate)) for name, rate in others),
        ("unit", f"{scores.unit} ({scores.unit_rule})"),
        (
            units,
            f"{counts.reference.sum()} in the references; {counts.substitutions.sum()} substituted, {counts.deletions.sum()} deleted, "
            f"{counts.insertions.sum()} inserted",
        ),
        ("coverage", f"{scores.scored} of {scores.utterances} rows ({_percent(scores.coverage)})"),
    ]
    if scores.clusters is not None:
        lines.append(("resampled", f"{len(scores.resampled)} groups of utterances"))
    if scores.failed:
        lines.append(("failed", f"{_rows(scores.failed)}; {scores.name} counting them as deletions {_percent(scores.rate_with_failures)}"))
    if scores.without_reference:
        lines.append(("no reference", _rows(scores.without_reference)))
    if scores.truncated:
        lines.append(("cut short", f"{scores.truncated} transcripts, at their token limit or in a loop"))
    if scores.empty_references:
        lines.append(
            (
                "empty references",
                f"{_rows(scores.empty_references)}; {scores.insertions_on_empty} {units} inserted in {scores.hallucinated}",
            )
        )
    lines.append(("normalizer", scores.normalizer.label()))
    if len(scores.groups) > 1:
        lines += [(_label(group), _line(group)) for group in scores.groups]
    width = max(len(label) for label, _ in lines)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in lines)


def _label(group: Scores) -> str:
    return " ".join(part for part in (group.preset, group.language) if part) or "(no language)"


def _line(group: Scores) -> str:
    low, high = group.interval
    interval = f"(95 % interval {_percent(low)} to {_percent(high)})"
    return (
        f"{group.name} {_percent(group.rate)}  {interval}, {group.scored} of {group.utterances} rows, unit {group.unit} ({group.unit_rule})"
    )


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %" if math.isfinite(value) else "n/a"
