"""A transcript against its reference, in the one notation of all pages: what is wrong, what was left out and what was added.

A wrong word stands under the said one, which is struck out; a word that was left out is struck out; an added word is underlined. Colours
say the same once more.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from arkfast.metrics import Pair, Unit, without_word_spaces

Kind = Literal["right", "wrong", "left out", "added"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Neighbouring places of an alignment that are shown as one; a wrong place is always alone."""

    kind: Kind
    """What is the matter with it."""
    said: str
    """Its part of the reference; empty where words were added."""
    heard: str
    """Its part of the transcript; empty where words were left out."""
    is_parted: bool
    """Whether a space stands before it."""


def runs(pairs: Sequence[Pair], unit: Unit) -> list[Run]:
    """An alignment as running text.

    Args:
        pairs: aligned units in order (``arkfast.metrics.align``).
        unit: what they are. Words stand apart; characters do where one of two neighbours is a word of several letters after all; of a
            mixture the words do, and characters of a script without spaces between words do not.
    """
    found: list[Run] = []
    before = ""
    for kind, group in itertools.groupby(pairs, key=_kind):
        places = list(group)
        for part in [[place] for place in places] if kind == "wrong" else [places]:
            units = [_unit(place) for place in part]
            said, heard = ([side for place in part if (side := place[which]) is not None] for which in (0, 1))
            parted = bool(before) and _parted(before, units[0], unit)
            found.append(Run(kind=kind, said=_joined(said, unit), heard=_joined(heard, unit), is_parted=parted))
            before = units[-1]
    return found


def _kind(pair: Pair) -> Kind:
    if pair.right:
        return "right"
    return "added" if pair.reference is None else "left out" if pair.hypothesis is None else "wrong"


def _unit(pair: Pair) -> str:
    return (pair.reference if pair.reference is not None else pair.hypothesis) or ""


def _joined(texts: Sequence[str], unit: Unit) -> str:
    joined = "".join(texts[:1])
    for before, text in itertools.pairwise(texts):
        joined += (" " if _parted(before, text, unit) else "") + text
    return joined


def _parted(before: str, text: str, unit: Unit) -> bool:
    """Whether two neighbours are written with a space between them."""
    if unit == "word":
        return True
    words = unit == "mixed" or len(before) > 1 or len(text) > 1  # a character of a text with spaces is a letter of a word
    return words and not without_word_spaces(before) and not without_word_spaces(text)
