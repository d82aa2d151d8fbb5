"""The languages that Qwen3-ASR was trained to be told, and which of them an utterance is in.

What the data says decides, and else the script of the reference. Nothing is guessed from spelling, so that a text in Latin letters names no
language.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from arkfast.metrics.language_names import MISTAKEN
from arkfast.metrics.languages import MIXED, canonical, is_known, rules_of

NAMES = {
    "ar": "Arabic", "yue": "Cantonese", "zh": "Chinese", "cs": "Czech", "da": "Danish", "nl": "Dutch", "en": "English", "fil": "Filipino",
    "fi": "Finnish", "fr": "French", "de": "German", "el": "Greek", "hi": "Hindi", "hu": "Hungarian", "id": "Indonesian", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "mk": "Macedonian", "ms": "Malay", "fa": "Persian", "pl": "Polish", "pt": "Portuguese",
    "ro": "Romanian", "ru": "Russian", "es": "Spanish", "sv": "Swedish", "th": "Thai", "tr": "Turkish", "vi": "Vietnamese",
}  # fmt: skip
"""Codes → the names that stand in its prompts."""

_SCRIPTS = {"HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "CJK": "zh", "THAI": "th", "GREEK": "el", "DEVANAGARI": "hi"}
"""Scripts that one of its languages is written in, by the first word of their characters' names. Cyrillic and Arabic letters are those of
two of its languages each, Latin letters of many."""
_CODE = re.compile("[a-z]{3}")


class Spoken(NamedTuple):
    """The language of an utterance, as far as it is known."""

    name: str | None
    """As the prompt has it; None: nothing is known, or the model does not know the language."""
    unsupported: str | None = None
    """Code of a language that the model does not know; None otherwise."""


@lru_cache(maxsize=4096)
def spoken(language: str | None, text: str | None) -> Spoken:
    """What is spoken: what the data says, or else what the reference's script says.

    The script also decides where the data names a language that nobody here knows (``metrics.language_names``), or writes the code of
    another language than it means, as ``kr`` for Korean.

    Args:
        language: a code or a name as the data gives it, such as ``de``, ``zh_CN``, ``Portuguese`` or ``日本語``.
        text: the reference.
    """
    code = rules_of(canonical(language))
    if code == MIXED:
        return Spoken(None)
    if code is not None and code in NAMES:
        return Spoken(NAMES[code])
    seen = _of_script(text or "")
    if code is None or (seen is not None and (not is_known(code) or seen == NAMES.get(MISTAKEN.get(code, "")))):
        return Spoken(seen)
    # a code of three letters may be a language's that the table lacks; anything else is a slip, and the model detects the language
    return Spoken(None, code if is_known(code) or _CODE.fullmatch(code) else None)


def _of_script(text: str) -> str | None:
    """The language of the script that most of a text's letters belong to, where it is that of one language."""
    letters: Counter[str] = Counter()
    for character in text:
        if character.isalpha():
            letters[_SCRIPTS.get(unicodedata.name(character, "").split(" ")[0].split("-")[0], "")] += 1
    if letters["ja"]:  # Japanese is written in Han characters too
        letters["ja"] += letters.pop("zh", 0)
    code, count = max(letters.items(), key=lambda item: (item[1], item[0]), default=("", 0))
    return NAMES[code] if code and 2 * count > letters.total() else None
