"""What the head scores: characters.

Characters serve all 19 languages of ARK-ASR. A Han character, a kana or a syllable of Hangul is one unit, spoken in about 0.2 s, while in
UTF-8 it would be three bytes of which two say nothing about the sound; and there is no tokenizer whose long pieces would hide where a word
begins within them. The units of a head are the characters of the transcripts that it was trained on, so none of them is unheard.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

BLANK = 0
"""CTC's blank."""
OTHER = 1
"""Any character that is no unit of its own. An alignment takes the best score of all units for it."""
MOST_UNITS = 8000
"""Units of their own; rarer characters are ``OTHER``. The table of general standard Chinese characters has 8,105."""


def spelling(text: str) -> list[tuple[str, int]]:
    """The characters of a text that are spoken, folded, each with its place in the text.

    Letters and numbers count; blanks, punctuation and marks do not. Case, width and compatibility forms are folded (NFKC and Unicode's
    case folding), so that one character of the text may become several, as ß does.
    """
    return [
        (folded, place)
        for place, character in enumerate(text)
        for folded in unicodedata.normalize("NFKC", character).casefold()
        if unicodedata.category(folded)[0] in "LN"
    ]


class Units:
    """The units of a head: a table of characters.

    Args:
        characters: in the order of their ids, which begin behind ``BLANK`` and ``OTHER``; each once.
    """

    def __init__(self, characters: Sequence[str]) -> None:
        self.characters = tuple(characters)
        self._ids = {character: number for number, character in enumerate(self.characters, start=OTHER + 1)}

    @classmethod
    def of_texts(cls, texts: Iterable[str], *, most: int = MOST_UNITS) -> Units:
        """The most frequent characters of texts; of equally frequent ones the first by code point."""
        counts = Counter(character for text in texts for character, _ in spelling(unicodedata.normalize("NFC", text)))
        return cls([character for character, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:most]])

    def __len__(self) -> int:
        """How many ids there are, ``BLANK`` and ``OTHER`` included."""
        return OTHER + 1 + len(self.characters)

    def ids(self, text: str) -> list[int]:
        """The ids of what is spoken in a text."""
        return [self._ids.get(character, OTHER) for character, _ in spelling(unicodedata.normalize("NFC", text))]
