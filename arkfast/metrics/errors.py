"""Error counts of transcripts, one entry per utterance, and the rates and intervals that follow from them.

Knows two lists of texts and what a unit is; does not normalise, knows no rows and no files. Counts are kept per utterance, so that a rate
over any subset, and its bootstrap interval, need no second alignment.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from arkfast.records import InputError

Unit = Literal["word", "char"]
UNITS: tuple[Unit, ...] = ("word", "char")

_RESAMPLE_CELLS = 1 << 20  # resamples are drawn this many counts (8 MiB) at a time


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

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, index: slice | np.ndarray) -> ErrorCounts:
        """The counts of some of the utterances, chosen by a slice, a boolean mask or an index array."""
        return ErrorCounts(**{f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self)})

    def rate(self) -> float:
        """Σ errors / Σ reference units as a fraction (0.05 is 5 %; above 1 is possible); NaN where there are no reference units."""
        reference = int(self.reference.sum())
        return int(self.errors.sum()) / reference if reference else math.nan

    def bootstrap(self, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
        """Percentile bootstrap interval of ``rate()``: utterances are drawn with replacement, U at a time.

        Source: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004. Utterances with
        equal (errors, reference) are interchangeable, so the multinomial runs over distinct pairs with probability (how many) / U: the same
        law, in memory and time that do not grow with U, and independent of the utterances' order.

        Args:
            confidence: mass inside the interval, in (0, 1).
            resamples: how many corpora to draw, at least 1.
            seed: the same seed and counts give the same interval.

        Returns:
            (low, high) as fractions; (NaN, NaN) where there are no reference units.

        Raises:
            ValueError: ``confidence`` or ``resamples`` out of range.
        """
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
        if resamples < 1:
            raise ValueError(f"resamples must be at least 1, got {resamples}")
        if not self.reference.any():
            return math.nan, math.nan
        pairs, multiplicity = np.unique(np.stack([self.errors, self.reference], axis=1), axis=0, return_counts=True)
        rng = np.random.default_rng(seed)
        step = max(1, _RESAMPLE_CELLS // len(pairs))
        totals = np.concatenate(
            [
                rng.multinomial(len(self), multiplicity / len(self), size=min(step, resamples - start)) @ pairs
                for start in range(0, resamples, step)
            ]
        )
        drawn = totals[totals[:, 1] > 0]  # a corpus drawn from empty references alone has no rate
        if not len(drawn):
            return math.nan, math.nan
        tail = (1 - confidence) / 2
        low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [tail, 1 - tail])
        return float(low), float(high)


def bootstrap_difference(
    first: ErrorCounts, second: ErrorCounts, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """``first.rate() − second.rate()`` on the same utterances, with the interval of a paired bootstrap.

    Both systems are resampled together, so what makes an utterance hard for both cancels (Bisani and Ney 2004, section 4).

    Args:
        first, second: counts of the same U references in the same order.
        confidence: mass inside the interval, in (0, 1).
        resamples: how many corpora to draw.
        seed: the same seed and counts give the same interval.

    Returns:
        (difference, low, high) as fractions; negative where ``first`` makes fewer errors.

    Raises:
        ValueError: the references differ, or have no units.
    """
    if not np.array_equal(first.reference, second.reference):
        raise ValueError("bootstrap_difference: the two counts are not of the same references in the same order")
    if not first.reference.any():
        raise ValueError("bootstrap_difference: the references have no units")
    triples = np.stack([first.errors, second.errors, first.reference], axis=1)
    triples, multiplicity = np.unique(triples, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    step = max(1, _RESAMPLE_CELLS // len(triples))
    totals = np.concatenate(
        [
            rng.multinomial(len(first), multiplicity / len(first), size=min(step, resamples - start)) @ triples
            for start in range(0, resamples, step)
        ]
    )
    totals = totals[totals[:, 2] > 0]
    tail = (1 - confidence) / 2
    low, high = np.quantile((totals[:, 0] - totals[:, 1]) / totals[:, 2], [tail, 1 - tail])
    return first.rate() - second.rate(), float(low), float(high)


def count_errors(references: Sequence[str], hypotheses: Sequence[str], *, unit: Unit = "word") -> ErrorCounts:
    """Counts of each hypothesis against its reference, by one jiwer call.

    Args:
        references: U texts, already normalised; an empty one counts the hypothesis as insertions.
        hypotheses: U texts in the same order.
        unit: ``word`` (separated by whitespace) or ``char`` (whitespace removed).

    Raises:
        InputError: an unknown unit.
        ValueError: the lists differ in length.
    """
    if unit not in UNITS:
        raise InputError(f"unknown unit '{unit}': choose one of {', '.join(UNITS)}")
    if len(references) != len(hypotheses):
        raise ValueError(f"expected as many hypotheses as references, got {len(hypotheses)} for {len(references)}")
    counts = np.zeros((4, len(references)), dtype=np.int64)
    if len(references):
        import jiwer

        # jiwer splits at single spaces, so other whitespace is turned into one, or removed, first
        joiner, process = (" ", jiwer.process_words) if unit == "word" else ("", jiwer.process_characters)
        output = process([joiner.join(text.split()) for text in references], [joiner.join(text.split()) for text in hypotheses])
        row = {"substitute": 0, "delete": 1, "insert": 2, "equal": 3}
        for i, chunks in enumerate(output.alignments):
            for chunk in chunks:
                of_hypothesis = chunk.type == "insert"
                length = chunk.hyp_end_idx - chunk.hyp_start_idx if of_hypothesis else chunk.ref_end_idx - chunk.ref_start_idx
                counts[row[chunk.type], i] += length
    substitutions, deletions, insertions, hits = counts
    return ErrorCounts(substitutions=substitutions, deletions=deletions, insertions=insertions, hits=hits)


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """``count_errors`` with words as units."""
    return count_errors(references, hypotheses, unit="word")


def char_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """``count_errors`` with characters as units, whitespace left out."""
    return count_errors(references, hypotheses, unit="char")
