"""Confidences that mean something: of words with a confidence of 0.8, four in five are right.

A word's odds of being right are fitted to its probability by two numbers (Platt 1999, "Probabilistic outputs for support vector machines",
here on the logit of the probability, as Guo et al. 2017 do with their temperature): logit(confidence) = slope · logit(p) + offset.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from arkfast.files import json_text, naming, write_text
from arkfast.files.json_input import parse_json
from arkfast.infer.confidence import spans
from arkfast.metrics.alignment import align
from arkfast.records import InputError, JsonRow

VERSION = 1
BINS = 10
"""Of the expected calibration error: tenths of the confidence."""
LEAST_WORDS = 100
"""Fewer words say nothing about shares."""
_NEAR = 1e-6  # probabilities are kept so far from 0 and 1


@dataclass(frozen=True)
class Calibration:
    """What makes confidences of probabilities."""

    slope: float
    offset: float

    def __call__(self, probability: float) -> float:
        """The share of words with this probability that are right."""
        return float(self.of(np.array([probability]))[0])

    def of(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """``__call__`` for many."""
        return 1 / (1 + np.exp(-(self.slope * _logit(probabilities) + self.offset)))

    def write(self, path: Path) -> None:
        """Write the companion file.

        Raises:
            InputError: it cannot be written.
        """
        write_text(path, json_text({"arkfast_calibration": VERSION, "slope": self.slope, "offset": self.offset}, indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Read a companion file.

        Raises:
            InputError: it cannot be read, or is no such file.
        """
        with naming(path):
            text = path.read_text(encoding="utf-8", errors="replace")
        try:
            given = parse_json(text)
        except ValueError:
            given = None
        numbers = [given.get(name) for name in ("slope", "offset")] if isinstance(given, dict) else []
        sound = [float(n) for n in numbers if isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n)]
        if not isinstance(given, dict) or given.get("arkfast_calibration") != VERSION or len(sound) != 2 or sound[0] <= 0:
            raise InputError(f"{path}: is no calibration that this version reads; make one with scripts/calibrate_confidence.py")
        return cls(*sound)


def _logit(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.clip(probabilities, _NEAR, 1 - _NEAR)
    return np.log(p) - np.log1p(-p)


def judged_words(rows: Iterable[JsonRow]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Confidence of each word of the transcripts, and whether it is right: aligned with the reference without case and punctuation.

    Args:
        rows: of ``arkfast transcribe --confidence``, without ``--calibration``, of a manifest with references. Rows without a reference
            or a transcript are passed over.

    Returns:
        [n] float64 and [n] bool.
    """
    confidences: list[float] = []
    right: list[bool] = []
    for row in rows:
        said, words = row.get("text"), row.get("word_confidence")
        if not isinstance(said, str) or not words:
            continue
        reference = [_plain(said[start:stop]) for start, stop in spans(said)]
        pairs = align(reference, [_plain(word["word"]) for word in words])
        confidences += [word["confidence"] for word in words]
        right += [pair.right for pair in pairs if pair.hypothesis is not None]
    return np.array(confidences, dtype=np.float64), np.array(right, dtype=bool)


def _plain(word: str) -> str:
    return "".join(character for character in word.casefold() if character.isalnum())


def fit(probabilities: NDArray[np.float64], right: NDArray[np.bool_]) -> Calibration:
    """The slope and the offset of highest likelihood, by Newton's method.

    Args:
        probabilities: [n] of words.
        right: [n] whether each is right.

    Raises:
        InputError: fewer than 100 words, or all of them right or wrong.
    """
    if len(right) < LEAST_WORDS or right.all() or not right.any():
        raise InputError(
            f"{len(right)} words, {int(right.sum())} of them right: a calibration needs at least {LEAST_WORDS}, with right and wrong ones; "
            "give more rows with references"
        )
    x = np.stack([_logit(probabilities), np.ones(len(right))], axis=1)
    weights = np.array([1.0, 0.0])
    # Platt's targets, a little off 0 and 1, keep the answer finite where the two kinds are fully apart
    target = np.where(right, (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2))
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-6 * np.eye(2)
        change = np.linalg.solve(hessian, x.T @ (target - p))
        weights = weights + np.clip(change, -2, 2)
        if np.abs(change).max() < 1e-10:
            break
    if weights[0] <= 0:
        raise InputError("surer words are not more often right in these rows, so no calibration holds; give other rows or another model")
    return Calibration(float(weights[0]), float(weights[1]))


def calibration_error(confidences: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """The expected calibration error: over tenths of the confidence, the mean distance between confidence and the share that was right,
    weighted by words (Naeini et al. 2015)."""
    which = np.minimum((confidences * BINS).astype(np.int64), BINS - 1)
    inside = [which == b for b in range(BINS)]
    return sum(abs(float(confidences[i].mean()) - float(right[i].mean())) * float(i.mean()) for i in inside if i.any())


def calibrate(rows: Sequence[JsonRow], output: Path) -> str:
    """Fit a calibration on every second row, measure it on the others, write it, and say what it changed.

    Args:
        rows: as for ``judged_words``.
        output: the companion file.

    Raises:
        InputError: as ``fit`` and ``Calibration.write``.
    """
    calibration = fit(*judged_words(rows[::2]))
    confidences, right = judged_words(rows[1::2])
    if not len(right):
        raise InputError("every second row has no words, so nothing is left to measure on; give more rows with references")
    before, after = calibration_error(confidences, right), calibration_error(calibration.of(confidences), right)
    calibration.write(output)
    return (
        f"{len(right)} words of rows that were not fitted, {100 * right.mean():.1f} % right: expected calibration error "
        f"{before:.4f} before, {after:.4f} after; slope {calibration.slope:.4f}, offset {calibration.offset:.4f} → {output}"
    )
