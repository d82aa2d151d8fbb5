"""Bootstrap draws and randomisation draws over utterances, in time and memory that do not grow with how many there are.

Source: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR
performance evaluation", ICASSP 2004. Utterances with equal counts are interchangeable, so a multinomial over the distinct rows with
probability (how many) / U draws from the same law as U draws of utterances, and independently of their order.
"""

from __future__ import annotations

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
_CELLS = 1 << 20  # draws are made this many counts (8 MiB) at a time


def distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of an int64 array [U, K] in ascending order, [D, K], and how often each stands there, [D]."""
    return np.unique(rows, axis=0, return_counts=True)


def resampled_totals(rows: np.ndarray, often: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Column sums of ``resamples`` corpora, each of as many utterances as there are, drawn with replacement.

    Args:
        rows: [D, K] int64, distinct.
        often: [D] how many utterances have each row.
        resamples: how many corpora to draw, at least 1.
        seed: the same seed and rows give the same draws.

    Returns:
        [resamples, K] int64.

    Raises:
        ValueError: ``resamples`` out of range.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    rng, total, step = np.random.default_rng(seed), int(often.sum()), max(1, _CELLS // len(rows))
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    return np.concatenate([rng.multinomial(total, often / total, size=size) @ rows for size in sizes])


def percentiles(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """The ends of the interval that holds ``confidence`` of the values, as much outside below as above.

    Raises:
        ValueError: ``confidence`` is not inside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def sign_flips(differences: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Σ ± difference with independent fair signs, ``resamples`` times: what the sum could be if the two sides were the same.

    Utterances with the same size of difference are interchangeable, so one binomial a size draws all of their signs.

    Args:
        differences: [U] int64.
        resamples: how many sums to draw.
        seed: the same seed and sizes give the same sums.

    Returns:
        [resamples] int64.
    """
    sizes, often = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    rng, sums = np.random.default_rng(seed), np.zeros(resamples, dtype=np.int64)
    for size, count in zip(sizes.tolist(), often.tolist(), strict=True):
        sums += size * (2 * rng.binomial(count, 0.5, size=resamples) - count)
    return sums
