"""Scores of transcription rows that cannot hide what was not scored.

Knows rows (dicts as transcription writes them), their references and the error counts; knows no files and no models. A row without a
transcript is never scored as an empty one: it is left out of the rates, shown as coverage, and a second rate counts it as deletions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from arkfast.metrics import UNITS, ErrorCounts, Unit, char_errors, count_errors, get_normalizer, normalize, word_errors
from arkfast.records import InputError

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Error rates over the scored rows (those with a transcript and a reference), and what was left out of them. Rates are fractions."""

    words: ErrorCounts
    """Word counts of the scored rows, in row order."""
    chars: ErrorCounts
    """Character counts of the scored rows, whitespace left out."""
    unit: Unit
    """Which of the two ``counts``, ``rate`` and ``interval`` speak of."""
    normalizer: str
    """What both texts went through before they were compared."""
    utterances: int
    """All rows."""
    failed: int
    """Rows without a transcript."""
    without_reference: int
    """Rows with a transcript that nothing can be compared with."""
    truncated: int
    """Scored rows whose transcript was cut at the token limit."""
    failed_units: int
    """Reference units, in ``unit``, of the failed rows."""

    @property
    def counts(self) -> ErrorCounts:
        """The counts in ``unit``."""
        return self.words if self.unit == "word" else self.chars

    @property
    def scored(self) -> int:
        """Rows that the rates speak of."""
        return len(self.words)

    @property
    def coverage(self) -> float:
        """Scored rows / all rows; NaN where there are none."""
        return self.scored / self.utterances if self.utterances else math.nan

    @property
    def wer(self) -> float:
        """Word errors / reference words; NaN where there are no reference words."""
        return self.words.rate()

    @property
    def cer(self) -> float:
        """Character errors / reference characters; NaN where there are no reference characters."""
        return self.chars.rate()

    @property
    def rate(self) -> float:
        """``wer`` or ``cer``, as ``unit`` says."""
        return self.counts.rate()

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval (low, high) of ``rate``."""
        return self.counts.bootstrap(CONFIDENCE)

    @property
    def rate_with_failures(self) -> float:
        """``rate`` if every failed row were an empty transcript: its reference counts as deletions."""
        reference = int(self.counts.reference.sum()) + self.failed_units
        return (int(self.counts.errors.sum()) + self.failed_units) / reference if reference else math.nan

    @property
    def empty_references(self) -> int:
        """Scored rows whose reference has no unit, such as recordings of silence."""
        return int((self.counts.reference == 0).sum())

    @property
    def insertions_on_empty(self) -> int:
        """Units written where the reference has none; the rate counts them too."""
        return int(self.counts.insertions[self.counts.reference == 0].sum())

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; rates that do not exist are None."""
        counts, name = self.counts, "wer" if self.unit == "word" else "cer"
        return {
            "wer": _finite(self.wer),
            "cer": _finite(self.cer),
            "unit": self.unit,
            "normalizer": self.normalizer,
            "confidence": CONFIDENCE,
            f"{name}_low": _finite(self.interval[0]),
            f"{name}_high": _finite(self.interval[1]),
            f"{name}_counting_failures_as_deletions": _finite(self.rate_with_failures),
            "substitutions": int(counts.substitutions.sum()),
            "deletions": int(counts.deletions.sum()),
            "insertions": int(counts.insertions.sum()),
            "hits": int(counts.hits.sum()),
            "reference_units": int(counts.reference.sum()),
            "utterances": self.utterances,
            "scored": self.scored,
            "failed": self.failed,
            "without_reference": self.without_reference,
            "coverage": _finite(self.coverage),
            "truncated": self.truncated,
            "empty_references": self.empty_references,
            "insertions_on_empty_references": self.insertions_on_empty,
        }

    def table(self) -> str:
        """The scores as aligned lines of plain text; what was left out stands there only when something was."""
        counts, name = self.counts, "WER" if self.unit == "word" else "CER"
        other, other_rate = ("CER", self.cer) if self.unit == "word" else ("WER", self.wer)
        low, high = self.interval
        lines = [
            (name, f"{_percent(self.rate)}  (95 % interval {_percent(low)} to {_percent(high)})"),
            (other, _percent(other_rate)),
            (
                f"{self.unit}s",
                f"{counts.reference.sum()} in the references; {counts.substitutions.sum()} substituted, {counts.deletions.sum()} deleted, "
                f"{counts.insertions.sum()} inserted",
            ),
            ("coverage", f"{self.scored} of {self.utterances} rows ({_percent(self.coverage)})"),
        ]
        if self.failed:
            lines.append(("failed", f"{_rows(self.failed)}; {name} counting them as deletions {_percent(self.rate_with_failures)}"))
        if self.without_reference:
            lines.append(("no reference", _rows(self.without_reference)))
        if self.truncated:
            lines.append(("cut short", f"{self.truncated} transcripts reached the token limit"))
        if self.empty_references:
            lines.append(("empty references", f"{_rows(self.empty_references)}; {self.insertions_on_empty} {self.unit}s inserted there"))
        lines.append(("normalizer", self.normalizer))
        width = max(len(label) for label, _ in lines)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in lines)


def evaluate_rows(rows: Iterable[Mapping[str, Any]], *, normalizer: str = "basic", unit: Unit = "word", text_field: str = "text") -> Scores:
    """Scores of transcription rows.

    Args:
        rows: each with a transcript in ``pred_text`` (None, missing, or ``status`` ``error``: the row failed), its reference in
            ``text_field`` and, for the normaliser, its ``language``.
        normalizer: applied to references and transcripts alike (``arkfast.metrics.normalize``).
        unit: ``word`` or ``char``: what the interval and the detailed counts speak of; both rates are always there.
        text_field: the reference's field.

    Raises:
        InputError: an unknown normaliser or unit, a missing normaliser package, or a reference that is not text.
    """
    return score_rows(rows, normalizer=normalizer, unit=unit, text_field=text_field)[0]


def score_rows(
    rows: Iterable[Mapping[str, Any]], *, normalizer: str = "basic", unit: Unit = "word", text_field: str = "text"
) -> tuple[Scores, list[dict[str, Any]]]:
    """``evaluate_rows``, and each row in the same order with what it was scored by.

    Added fields: ``ref_text``, ``ref_text_clean``, ``pred_text_clean``, ``wer_errors``, ``cer_errors``, ``ref_words``, ``ref_chars`` (the
    counts are ints; characters leave whitespace out); None where a row has no such thing.
    """
    get_normalizer(normalizer)  # a wrong name or missing package is told even where there are no rows
    if unit not in UNITS:
        raise InputError(f"unknown unit '{unit}': choose one of {', '.join(UNITS)}")
    given = list(rows)
    references = [_clean(_reference(row, i, text_field), row, normalizer) for i, row in enumerate(given)]
    hypotheses = [_clean(_hypothesis(row), row, normalizer) for row in given]
    failed = np.array([hypothesis is None for hypothesis in hypotheses], dtype=bool)
    scored = [i for i in range(len(given)) if references[i] is not None and hypotheses[i] is not None]
    # an absent reference is never part of ``scored``; "" keeps the lists' types plain
    all_references = [reference or "" for reference in references]
    scored_references, scored_hypotheses = [all_references[i] for i in scored], [hypotheses[i] or "" for i in scored]
    words, chars = word_errors(scored_references, scored_hypotheses), char_errors(scored_references, scored_hypotheses)
    failed_references = [all_references[i] for i in np.flatnonzero(failed)]
    scores = Scores(
        words=words,
        chars=chars,
        unit=unit,
        normalizer=normalizer,
        utterances=len(given),
        failed=int(failed.sum()),
        without_reference=len(given) - int(failed.sum()) - len(scored),
        truncated=sum(given[i].get("finish_reason") == "length" for i in scored),
        failed_units=int(count_errors(failed_references, [""] * len(failed_references), unit=unit).deletions.sum()),
    )
    place = {i: k for k, i in enumerate(scored)}
    out = []
    for i, row in enumerate(given):
        reference = references[i]
        out.append(
            {
                **row,
                "ref_text": row.get(text_field),
                "ref_text_clean": reference,
                "pred_text_clean": hypotheses[i],
                "wer_errors": int(words.errors[place[i]]) if i in place else None,
                "cer_errors": int(chars.errors[place[i]]) if i in place else None,
                "ref_words": None if reference is None else len(reference.split()),
                "ref_chars": None if reference is None else len("".join(reference.split())),
            }
        )
    return scores, out


def _reference(row: Mapping[str, Any], i: int, text_field: str) -> str | None:
    reference = row.get(text_field)
    if reference is not None and not isinstance(reference, str):
        raise InputError(f"row {row.get('id', i + 1)}: field '{text_field}' must be text, got {type(reference).__name__}")
    return reference


def _hypothesis(row: Mapping[str, Any]) -> str | None:
    """The transcript; None where the row failed, whatever else stands in it."""
    prediction = row.get("pred_text")
    return prediction if isinstance(prediction, str) and row.get("status") != "error" else None


def _clean(text: str | None, row: Mapping[str, Any], normalizer: str) -> str | None:
    language = row.get("language")
    return None if text is None else normalize(text, normalizer=normalizer, language=language if isinstance(language, str) else None)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %" if math.isfinite(value) else "n/a"
