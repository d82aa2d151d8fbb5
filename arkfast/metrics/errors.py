"""Error counts of transcripts, one entry per utterance, and the rates and intervals that follow from them.

The texts have to be normalised before. Counts are kept per utterance, so that a rate over any subset, and its bootstrap interval, need no
second alignment.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from arkfast.metrics.languages import UNITS, Unit, tokenize
from arkfast.metrics.resampling import CONFIDENCE, RESAMPLES, distinct, percentiles, resampled_totals
from arkfast.records import InputError

_PAIRS = 8192  # texts that jiwer aligns in one call: it holds an object for every run of equal or unequal units


@dataclass(frozen=True, kw_only=True, eq=False)
class ErrorCounts:
    """Levenshtein counts of U utterances: int64 arrays [U] in the order of the texts."""

    substitutions: np.ndarray
    """Reference units replaced by another."""
    deletions: np.ndarray
    """Reference units missing from the hypothesis."""
    insertions: np.ndarray
    """Hypothesis units that the reference does not have; all of a hypothesis where the reference is empty."""
    hits: np.ndarray
    """Reference units that the hypothesis has."""

    @property
    def errors(self) -> np.ndarray:
        """[U] substitutions + deletions + insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def reference(self) -> np.ndarray:
        """[U] units of the reference: hits + substitutions + deletions."""
        return self.hits + self.substitutions + self.deletions

    @property
    def hypothesis(self) -> np.ndarray:
        """[U] units of the hypothesis: hits + substitutions + insertions."""
        return self.hits + self.substitutions + self.insertions

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, index: slice | np.ndarray) -> ErrorCounts:
        """The counts of some of the utterances, chosen by a slice, a boolean mask or an index array."""
        return self._each(lambda values: values[index])

    def where(self, mask: np.ndarray, other: ErrorCounts) -> ErrorCounts:
        """These counts where the boolean ``mask`` [U] is true, those of ``other`` elsewhere."""
        return ErrorCounts(**{name: np.where(mask, getattr(self, name), getattr(other, name)) for name in _FIELDS})

    def by(self, keys: Sequence[Hashable]) -> ErrorCounts:
        """Sums over the utterances with equal keys (a session, a speaker), in the order in which the keys first appear.

        Raises:
            ValueError: not as many keys as utterances.
        """
        if len(keys) != len(self):
            raise ValueError(f"expected one key an utterance, got {len(keys)} for {len(self)}")
        places: dict[Hashable, int] = {}
        owner = np.fromiter((places.setdefault(key, len(places)) for key in keys), dtype=np.int64, count=len(self))
        # float64 sums of counts are exact below 2^53
        return self._each(lambda values: np.bincount(owner, weights=values, minlength=len(places)).astype(np.int64))

    def _each(self, function: Callable[[np.ndarray], np.ndarray]) -> ErrorCounts:
        return ErrorCounts(**{name: function(getattr(self, name)) for name in _FIELDS})

    def rate(self) -> float:
        """Σ errors / Σ reference units as a fraction (0.05 is 5 %; above 1 is possible); NaN where there are no reference units."""
        reference = int(self.reference.sum())
        return int(self.errors.sum()) / reference if reference else math.nan

    def grouped(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct (errors, reference units), int64 [D, 2] ascending, and how many utterances have each, [D]."""
        return distinct(np.stack([self.errors, self.reference], axis=1))

    def bootstrap(self, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
        """Percentile bootstrap interval of ``rate()``: utterances are drawn with replacement, U at a time (``resampling``).

        Args:
            confidence: mass inside the interval, in (0, 1).
            resamples: how many corpora to draw, at least 1.
            seed: the same seed and counts give the same interval.

        Returns:
            (low, high) as fractions; (NaN, NaN) where there are no reference units.

        Raises:
            ValueError: ``confidence`` or ``resamples`` out of range.
        """
        rates = resampled_rates(*self.grouped(), resamples=resamples, seed=seed)
        return percentiles(rates if len(rates) else np.array([math.nan]), confidence)


_FIELDS = tuple(f.name for f in dataclasses.fields(ErrorCounts))


def resampled_rates(pairs: np.ndarray, often: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Rates of resampled corpora, float64, from ``ErrorCounts.grouped``; corpora drawn from empty references alone have none.

    Raises:
        ValueError: ``resamples`` out of range.
    """
    if not len(pairs):
        pairs, often = np.zeros((1, 2), dtype=np.int64), np.ones(1, dtype=np.int64)
    totals = resampled_totals(pairs, often, resamples=resamples, seed=seed)
    totals = totals[totals[:, 1] > 0]
    return totals[:, 0] / totals[:, 1]


def count_errors(references: Sequence[str], hypotheses: Sequence[str], *, unit: Unit = "word") -> ErrorCounts:
    """Counts of each hypothesis against its reference, aligned by jiwer.

    Args:
        references: U texts, already normalised; an empty one counts the hypothesis as insertions.
        hypotheses: U texts in the same order.
        unit: ``word`` (separated by whitespace), ``char`` (whitespace removed) or ``mixed`` (``languages.UNITS``).

    Raises:
        InputError: an unknown unit.
        ValueError: the lists differ in length.
    """
    if unit not in UNITS:
        raise InputError(f"unknown unit '{unit}': choose one of {', '.join(UNITS)}")
    if len(references) != len(hypotheses):
        raise ValueError(f"expected as many hypotheses as references, got {len(hypotheses)} for {len(references)}")
    counts = np.zeros((4, len(references)), dtype=np.int64)
    for start in range(0, len(references), _PAIRS):
        stop = start + _PAIRS
        _align(references[start:stop], hypotheses[start:stop], unit, counts[:, start:stop])
    substitutions, deletions, insertions, hits = counts
    return ErrorCounts(substitutions=substitutions, deletions=deletions, insertions=insertions, hits=hits)


def _align(references: Sequence[str], hypotheses: Sequence[str], unit: Unit, counts: np.ndarray) -> None:
    """Add up what one jiwer call finds, into ``counts`` [4, U]: substitutions, deletions, insertions, hits."""
    import jiwer

    # jiwer splits at single spaces and counts them as characters, so whitespace becomes one space, or goes, first
    joiner, process = ("", jiwer.process_characters) if unit == "char" else (" ", jiwer.process_words)
    unequal, left, right = [], [], []
    for i, (reference, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        units = tokenize(reference, unit)
        if reference == hypothesis:  # most rows of a good system: nothing to align
            counts[3, i] = len(units)
            continue
        unequal.append(i)
        left.append(joiner.join(units))
        right.append(joiner.join(tokenize(hypothesis, unit)))
    if not unequal:
        return
    output = process(left, right)
    row = {"substitute": 0, "delete": 1, "insert": 2, "equal": 3}
    for i, chunks in zip(unequal, output.alignments, strict=True):
        for chunk in chunks:
            of_hypothesis = chunk.type == "insert"
            length = chunk.hyp_end_idx - chunk.hyp_start_idx if of_hypothesis else chunk.ref_end_idx - chunk.ref_start_idx
            counts[row[chunk.type], i] += length


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """``count_errors`` with words as units."""
    return count_errors(references, hypotheses, unit="word")


def char_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """``count_errors`` with characters as units, whitespace left out."""
    return count_errors(references, hypotheses, unit="char")
