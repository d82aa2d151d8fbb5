"""Scores of transcription rows that cannot hide what was not scored.

A row without a transcript is not scored as an empty one: it is left out of the rates, lowers the coverage that is shown beside them, and a
second rate counts it as deletions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from arkfast.metrics import CONFIDENCE, ErrorCounts, Normalizer
from arkfast.records import JsonObject

RATE_NAMES = {"word": "wer", "char": "cer", "mixed": "mer", "joint": "joint"}
"""What the rate in a unit is called."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Error rates over the scored rows (those with a transcript and a reference), and what was left out of them. Rates are fractions."""

    words: ErrorCounts
    """Word counts of the scored rows, in row order; mixed units where the language is written without spaces between words."""
    chars: ErrorCounts
    """Character counts of the scored rows, whitespace left out."""
    mixed: ErrorCounts
    """Counts in mixed units: characters of scripts without word spaces, elsewhere words."""
    counts: ErrorCounts
    """Counts of each row in its own unit: what ``rate`` and ``interval`` speak of."""
    unit: Literal["word", "char", "mixed", "joint"]
    """The rows' unit; ``joint`` where they have several."""
    unit_rule: str
    """Why errors are counted in that unit."""
    clusters: tuple[str | int | None, ...] | None
    """For each scored row, what it is resampled with; None resamples utterances."""
    normalizer: Normalizer
    """What both texts went through before they were compared."""
    preset: str | None = None
    """The rows' preset; None where they have none or several."""
    language: str | None = None
    """ISO code of the rows' language; None where they have none or several."""
    utterances: int
    """All rows."""
    failed: int
    """Rows without a transcript."""
    without_reference: int
    """Rows with a transcript that nothing can be compared with."""
    truncated: int
    """Scored rows whose transcript was cut short: at its token limit, or because it repeated itself."""
    failed_units: int
    """Reference units of the failed rows, each in its row's unit."""
    groups: tuple[Scores, ...] = ()
    """The same for each (preset, language), in the order in which they first appear; empty in a group."""

    @property
    def scored(self) -> int:
        """Rows that the rates speak of."""
        return len(self.counts)

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
    def mer(self) -> float:
        """Errors / reference units in mixed units; NaN where there are none."""
        return self.mixed.rate()

    @property
    def rate(self) -> float:
        """The headline: errors / reference units, each row in its own unit."""
        return self.counts.rate()

    @property
    def metric(self) -> str:
        """``rate``'s name in summaries: ``wer``, ``cer``, ``mer`` or ``joint``."""
        return RATE_NAMES[self.unit]

    @property
    def name(self) -> str:
        """What ``rate`` is called: WER, CER, MER, or J/WER where rows differ in their unit."""
        return "J/WER" if self.unit == "joint" else self.metric.upper()

    @property
    def resampled(self) -> ErrorCounts:
        """What the bootstrap draws from: utterances, or their sums over equal clusters."""
        return self.counts if self.clusters is None else self.counts.by(self.clusters)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval (low, high) of ``rate``."""
        return self.resampled.bootstrap(CONFIDENCE)

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
    def hallucinated(self) -> int:
        """Rows with an empty reference whose transcript has units."""
        return int((self.counts.insertions[self.counts.reference == 0] > 0).sum())

    @property
    def insertions_on_empty(self) -> int:
        """Units that transcripts have where the reference has none; the rate counts them too."""
        return int(self.counts.insertions[self.counts.reference == 0].sum())

    def to_dict(self) -> JsonObject:
        """A group's fields in ``summary``'s contract, as plain JSON values; rates that do not exist are None."""
        counts, (pairs, often) = self.counts, self.resampled.grouped()
        return {
            "preset": self.preset,
            "language": self.language,
            "unit": self.unit,
            "unit_rule": self.unit_rule,
            "metric": self.metric,
            "rate": _finite(self.rate),
            "rate_low": _finite(self.interval[0]),
            "rate_high": _finite(self.interval[1]),
            "rate_with_failures": _finite(self.rate_with_failures),
            "wer": _finite(self.wer),
            "cer": _finite(self.cer),
            "mer": _finite(self.mer),
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
            "hallucinated": self.hallucinated,
            "insertions_on_empty_references": self.insertions_on_empty,
            "counts": np.column_stack([pairs, often]).tolist(),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
