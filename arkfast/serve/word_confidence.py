"""How sure the model was of words that have times.

Times belong to words without their punctuation, confidences to what stands between blanks. Both come from one transcript, so that their
letters and numbers are the same, in the same order.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from arkfast.records import JsonObject, JsonRow


def with_confidence(words: Sequence[JsonObject], rated: Sequence[JsonRow]) -> list[JsonObject]:
    """The words with a ``confidence`` each: the least of the parts of the transcript that it has letters of.

    Args:
        words: ``Result.words``.
        rated: ``word_confidence`` of the same clip. Where its letters are others, because a part of what the model wrote is no part of the
            transcript, the words stay without.
    """
    letters = [(letter, part["confidence"]) for part in rated for letter in _letters(part["word"])]
    said = [_letters(word["word"]) for word in words]
    at = "".join(letter for letter, _ in letters).find("".join(said))
    if at < 0:
        return list(words)
    found = []
    for word, own in zip(words, said, strict=True):
        confidences = [confidence for _, confidence in letters[at : at + len(own)]]
        at += len(own)
        found.append(word | ({"confidence": min(confidences)} if confidences else {}))
    return found


def _letters(text: str) -> str:
    return "".join(character for character in unicodedata.normalize("NFC", text) if character.isalnum())
