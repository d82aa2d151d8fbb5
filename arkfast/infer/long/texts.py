"""Transcripts of consecutive clips as one text."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from arkfast.metrics.languages import without_word_spaces

_OPEN = "“‘"  # marks that Chinese shares with Latin scripts: what stands beyond them decides
_CLOSED = "”’…—"


def join_texts(texts: Iterable[str]) -> str:
    """The texts one after the other, with a blank in between where the script writes one.

    There is none between two characters of scripts without word spaces (Han, kana, Thai, Lao, Khmer, Burmese), none beside full-width
    punctuation, and one everywhere else: in Korean, and between Han and Latin letters, so that no two words become one. Texts without
    a character are passed over.
    """
    joined = ""
    for text in texts:
        text = " ".join(text.split())
        if joined and text:
            joined += glue(joined, text)
        joined += text
    return joined


def glue(left: str, right: str) -> str:
    """What stands between two texts that are not empty: a blank or nothing."""
    before, after = (left.rstrip(_CLOSED) or left)[-1], (right.lstrip(_OPEN) or right)[0]
    if is_full_width_mark(before) or is_full_width_mark(after):
        return ""
    return "" if without_word_spaces(before) and without_word_spaces(after) else " "


def is_begun(right: str) -> bool:
    """Whether ``glue`` stays what it is however the right text, of which this is the beginning, goes on."""
    return bool(right.lstrip(_OPEN))


def is_full_width_mark(character: str) -> bool:
    """Whether it is punctuation that brings its own space, such as 。 and ，."""
    return unicodedata.category(character)[0] == "P" and unicodedata.east_asian_width(character) in "WF"
