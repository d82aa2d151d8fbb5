"""Which unit of a transcript stands for which of its reference: an alignment with the fewest errors.

Knows two lists of units (words or characters, normalised before); knows no rows. Scores are made of ``arkfast.metrics``' counts; of several
alignments with as few errors this one may be another.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

MOST_CELLS = 4_000_000
"""Table size (reference times transcript, after their common ends) up to which an alignment has the fewest errors: seconds of work."""


class Pair(NamedTuple):
    """One place of an alignment; at least one side is there."""

    reference: str | None
    """The unit that was said; None where one was inserted."""
    hypothesis: str | None
    """The unit that was heard; None where one was deleted."""

    @property
    def right(self) -> bool:
        """Whether both sides agree."""
        return self.reference == self.hypothesis


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Pair]:
    """The places of both lists side by side, with the fewest substitutions, deletions and insertions; pairs before gaps among equals.

    Lists whose table would exceed ``MOST_CELLS`` are aligned by their longest common runs, which may count a few errors more.
    """
    start = 0
    while start < min(len(reference), len(hypothesis)) and reference[start] == hypothesis[start]:
        start += 1
    end = 0
    while end < min(len(reference), len(hypothesis)) - start and reference[-1 - end] == hypothesis[-1 - end]:
        end += 1
    said, heard = reference[start : len(reference) - end], hypothesis[start : len(hypothesis) - end]
    middle = _fewest(said, heard) if len(said) * len(heard) <= MOST_CELLS else _runs(said, heard)
    tail = reference[len(reference) - end :]
    return [*(Pair(unit, unit) for unit in reference[:start]), *middle, *(Pair(unit, unit) for unit in tail)]


def _fewest(said: Sequence[str], heard: Sequence[str]) -> list[Pair]:
    """Levenshtein's table from the end, then a walk from the start."""
    rows = [list(range(len(heard), -1, -1))]  # rows[i][j]: errors between the last i units said and heard[j:]
    for unit in reversed(said):
        below = rows[-1]
        row = [0] * len(heard) + [below[-1] + 1]
        right = row[-1]
        for j in range(len(heard) - 1, -1, -1):
            best = below[j + 1] + (heard[j] != unit)
            if below[j] < best:
                best = below[j] + 1
            if right < best:
                best = right + 1
            row[j] = right = best
        rows.append(row)
    rows.reverse()
    pairs, i, j = [], 0, 0
    while i < len(said) or j < len(heard):
        here = rows[i][j]
        if i < len(said) and j < len(heard) and here == rows[i + 1][j + 1] + (said[i] != heard[j]):
            pairs.append(Pair(said[i], heard[j]))
            i, j = i + 1, j + 1
        elif i < len(said) and here == rows[i + 1][j] + 1:
            pairs.append(Pair(said[i], None))
            i += 1
        else:
            pairs.append(Pair(None, heard[j]))
            j += 1
    return pairs


def _runs(said: Sequence[str], heard: Sequence[str]) -> list[Pair]:
    pairs: list[Pair] = []
    for _, a, b, c, d in SequenceMatcher(None, said, heard, autojunk=False).get_opcodes():
        common = min(b - a, d - c)
        pairs += [Pair(said[a + k], heard[c + k]) for k in range(common)]
        pairs += [Pair(unit, None) for unit in said[a + common : b]]
        pairs += [Pair(None, unit) for unit in heard[c + common : d]]
    return pairs
