"""Where the words of a text stand."""

from __future__ import annotations

import unicodedata

from arkfast.metrics.languages import without_word_spaces

_BETWEEN_LETTERS = frozenset("'’.·:‧_")
_BETWEEN_NUMBERS = frozenset("'’.,;_")


def word_spans(text: str) -> list[tuple[int, int]]:
    """The words of a text as (begin, end) places, ascending; punctuation at their ends is in none.

    A word is a run of letters, numbers and their marks. One apostrophe, full stop, middle dot or colon between two letters belongs to it,
    and one apostrophe, full stop or comma between two numbers, as in the default rules of Unicode Standard Annex 29; a hyphen ends it. A
    character of a script without word spaces (Han, kana, Thai, Lao, Khmer, Burmese) is a word of its own.
    """
    spans: list[tuple[int, int]] = []
    kinds = [unicodedata.category(character)[0] for character in text]
    joins = False  # whether letters may be added to the last word
    for i, (character, kind) in enumerate(zip(text, kinds, strict=True)):
        continues = bool(spans) and spans[-1][1] == i
        if kind == "M":
            if continues:
                spans[-1] = (spans[-1][0], i + 1)
        elif kind in "LN":
            alone = without_word_spaces(character)
            if continues and joins and not alone:
                spans[-1] = (spans[-1][0], i + 1)
            else:
                spans.append((i, i + 1))
            joins = not alone
        elif continues and joins and i + 1 < len(text) and not without_word_spaces(text[i + 1]):
            around = kinds[i - 1] if kinds[i - 1] != "M" else "L", kinds[i + 1]
            if (around == ("L", "L") and character in _BETWEEN_LETTERS) or (around == ("N", "N") and character in _BETWEEN_NUMBERS):
                spans[-1] = (spans[-1][0], i + 1)
    return spans
