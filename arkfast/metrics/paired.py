"""Two systems on the same references: how much they differ, how sure that is, and how often chance alone would do it.

Nothing here checks that an entry of one set of counts belongs to the same utterance as its counterpart in the other; whoever joins the two
has to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arkfast.metrics.errors import ErrorCounts, resampled_rates
from arkfast.metrics.resampling import CONFIDENCE, RESAMPLES, distinct, percentiles, resampled_totals, sign_flips


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The rate of one system minus that of another, as fractions; negative where the first makes fewer errors."""

    value: float
    """The difference of the two rates."""
    low: float
    """Lower end of its bootstrap interval."""
    high: float
    """Upper end of its bootstrap interval."""
    p_value: float | None
    """Share of random exchanges of the two systems' results that differ at least as much; None where they were not paired."""


def bootstrap_difference(
    first: ErrorCounts, second: ErrorCounts, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
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
    rows, often = distinct(np.stack([first.errors, second.errors, first.reference], axis=1))
    totals = resampled_totals(rows, often, resamples=resamples, seed=seed)
    totals = totals[totals[:, 2] > 0]
    low, high = percentiles((totals[:, 0] - totals[:, 1]) / totals[:, 2], confidence)
    return first.rate() - second.rate(), low, high


def paired_test(
    first: ErrorCounts, second: ErrorCounts, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """``bootstrap_difference``, and the p-value of a two-sided randomisation test.

    If the systems were the same, it would be a coin's toss which of them made which transcript of an utterance. The p-value is the share of
    such tosses (the data's own counted among them) in which the totals differ by at least as many errors as they do.

    Raises:
        ValueError: as ``bootstrap_difference``.
    """
    value, low, high = bootstrap_difference(first, second, confidence, resamples, seed)
    differences = first.errors - second.errors
    sums = sign_flips(differences, resamples=resamples, seed=seed)
    beyond = int((np.abs(sums) >= abs(int(differences.sum()))).sum())
    return Difference(value=value, low=low, high=high, p_value=(1 + beyond) / (1 + resamples))


def unpaired_difference(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """The difference of two rates of which only ``ErrorCounts.grouped`` is known; both corpora are resampled on their own.

    The interval is wider than a paired one, because what makes an utterance hard for both does not cancel.

    Raises:
        ValueError: one of them has no reference units.
    """
    rates = []
    for pairs, often in (first, second):
        errors, reference = (often @ pairs).tolist() if len(pairs) else (0, 0)
        if not reference:
            raise ValueError("unpaired_difference: the references have no units")
        rates.append(errors / reference)
    # two different streams: with equal ones the two sides would move together
    seeds = np.random.SeedSequence(seed).generate_state(2)
    drawn = [resampled_rates(*side, resamples=resamples, seed=int(s)) for side, s in zip((first, second), seeds, strict=True)]
    count = min(map(len, drawn))
    low, high = percentiles(drawn[0][:count] - drawn[1][:count], confidence)
    return Difference(value=rates[0] - rates[1], low=low, high=high, p_value=None)
