"""The languages that Qwen3-ASR was trained to be told, and which of them an utterance is in.

Knows what the data says and the script of a reference; guesses nothing from spelling, so that a text in Latin letters names no language.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from arkfast.metrics.languages import MIXED, canonical

NAMES = {
    "ar": "Arabic", "yue": "Cantonese", "zh": "Chinese", "cs": "Czech", "da": "Danish", "nl": "Dutch", "en": "English", "fil": "Filipino",
    "fi": "Finnish", "fr": "French", "de": "German", "el": "Greek", "hi": "Hindi", "hu": "Hungarian", "id": "Indonesian", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "mk": "Macedonian", "ms": "Malay", "fa": "Persian", "pl": "Polish", "pt": "Portuguese",
    "ro": "Romanian", "ru": "Russian", "es": "Spanish", "sv": "Swedish", "th": "Thai", "tr": "Turkish", "vi": "Vietnamese",
}  # fmt: skip
"""Codes → the names that stand in its prompts."""

_ALSO = {
    "ara": "ar", "arb": "ar", "dan": "da", "tl": "fil", "tgl": "fil", "tagalog": "fil", "ell": "el", "gre": "el", "hin": "hi", "ind": "id",
    "mkd": "mk", "mac": "mk", "msa": "ms", "may": "ms", "zsm": "ms", "fas": "fa", "per": "fa", "pes": "fa", "farsi": "fa", "por": "pt",
    "rus": "ru", "swe": "sv", "tur": "tr", "vie": "vi",
}  # fmt: skip
_CODES = {name.lower(): code for code, name in NAMES.items()} | _ALSO

_SCRIPTS = {"HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "CJK": "zh", "THAI": "th", "GREEK": "el", "DEVANAGARI": "hi"}
"""Scripts that one of its languages is written in, by the first word of their characters' names. Cyrillic and Arabic letters are those of
two of its languages each, Latin letters of many."""


class Spoken(NamedTuple):
    """The language of an utterance, as far as it is known."""

    name: str | None
    """As the prompt has it; None: nothing is known, or the model does not know the language."""
    unsupported: str | None = None
    """Code of a language that the model does not know; None otherwise."""


@lru_cache(maxsize=4096)
def spoken(language: str | None, text: str | None) -> Spoken:
    """What is spoken: what the data says, or else what the reference's script says.

    Args:
        language: a code or an English name as the data gives it, such as ``de``, ``zh_CN`` or ``Portuguese``.
        text: the reference.
    """
    code = canonical(language)
    if code is not None and code != MIXED:
        code = _CODES.get(code, code)
        return Spoken(NAMES[code]) if code in NAMES else Spoken(None, code)
    return Spoken(_of_script(text or "") if code is None else None)


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
