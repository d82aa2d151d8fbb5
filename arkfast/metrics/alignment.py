"""Which unit of a transcript stands for which of its reference: the alignment that the scores were counted on.

Units are words or characters of texts that have been normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


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
    """The places of both lists side by side, with the fewest substitutions, deletions and insertions.

    Of several such alignments it is jiwer's, as in ``count_errors``: what a page shows adds up to what was counted.
    """
    import jiwer

    pairs: list[Pair] = []
    for chunk in jiwer.process_words(" ".join(reference), " ".join(hypothesis)).alignments[0]:
        said, heard = reference[chunk.ref_start_idx : chunk.ref_end_idx], hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "delete":
            pairs += [Pair(unit, None) for unit in said]
        elif chunk.type == "insert":
            pairs += [Pair(None, unit) for unit in heard]
        else:
            pairs += [Pair(*units) for units in zip(said, heard, strict=True)]
    return pairs
