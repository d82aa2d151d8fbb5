"""Languages as data names them, and the unit in which each one's errors are counted by convention.

Knows codes, English names and scripts; guesses no language from a text. The one thing that is read from texts is their script, by
``unit_of_script``, for data that names no language at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

Unit = Literal["word", "char", "mixed"]
UNITS: tuple[Unit, ...] = ("word", "char", "mixed")
"""``word``: between whitespace. ``char``: a character, whitespace left out. ``mixed``: a character of a script without word spaces (Han,
kana, Thai, Lao, Khmer, Burmese), elsewhere a word."""

ARK_LANGUAGES = ("zh", "en", "de", "ja", "fr", "ko", "es", "pl", "it", "ro", "hu", "cs", "nl", "fi", "hr", "sk", "sl", "et", "lt")
"""The 19 languages of ARK-ASR, as ISO 639-1 codes."""

MIXED = "mixed"
"""What ``canonical`` calls data that switches between languages."""

_NAMES = {
    "zh": "zho chi cmn chinese mandarin putonghua", "yue": "cantonese", "en": "eng english", "de": "deu ger german", "ja": "jpn japanese",
    "fr": "fra fre french", "ko": "kor korean", "es": "spa spanish castilian", "pl": "pol polish", "it": "ita italian",
    "ro": "ron rum romanian moldavian", "hu": "hun hungarian", "cs": "ces cze czech", "nl": "nld dut dutch flemish", "fi": "fin finnish",
    "hr": "hrv croatian", "sk": "slk slo slovak", "sl": "slv slovene slovenian", "et": "est estonian", "lt": "lit lithuanian",
    "th": "tha thai", "lo": "lao", "km": "khm khmer", "my": "mya bur burmese myanmar",
}  # fmt: skip
_CODES = {name: code for code, names in _NAMES.items() for name in (code, *names.split())}
_WITHOUT_WORD_SPACES = frozenset({"zh", "yue", "wuu", "nan", "hak", "gan", "hsn", "ja", "th", "lo", "km", "my"})
_TWO_LANGUAGES = frozenset({"zh", "yue", "en", "ja", "ko"})  # none of these codes is a region's, so "zh-en" cannot mean a country
_SWITCHING = frozenset({"mixed", "codeswitch", "codeswitching"})
_UNKNOWN = frozenset({"und", "mul", "unknown", "auto", "none", "null"})
# Han (with the iteration mark, zero and Hangzhou numerals), kana (with the prolonged-sound mark and half-width forms); then Thai, Lao,
# Burmese and Khmer
_UNSPACED = (
    "\u3005\u3007\u3021-\u3029\u3031-\u3035\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u3041-\u3096\u3099-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f"
    "\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff"
)
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
_MIXED_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


@lru_cache(maxsize=1024)
def canonical(language: str | None) -> str | None:
    """The language's ISO code in lower case: ``zh`` for ``zh_CN``, ``cmn-Hans`` or ``Mandarin``; ``mixed`` for two languages (``zh-en``).

    A code or name that is not in our table comes back as its first part in lower case; None, blank text, ``und`` and ``auto`` are None.
    """
    parts = [part for part in re.split(r"[^\w]+|_", (language or "").strip().lower()) if part]
    if not parts or parts[0] in _UNKNOWN:
        return None
    if "".join(parts) in _SWITCHING:
        return MIXED
    codes = [_CODES.get(part, part) for part in parts]
    if len(codes) > 1 and set(codes[:2]) <= _TWO_LANGUAGES and codes[0] != codes[1] and set(codes[:2]) != {"zh", "yue"}:
        return MIXED
    return "yue" if codes[:2] == ["zh", "yue"] else codes[0]  # zh-yue is Cantonese's old tag


def unit_of(language: str) -> Unit:
    """The unit that a language is scored in by convention: characters where words are not separated by spaces, else words.

    Korean is scored in words (its character rate stands beside it); data that switches between languages in ``mixed`` units.
    """
    code = canonical(language)
    if code == MIXED:
        return "mixed"
    return "char" if code in _WITHOUT_WORD_SPACES else "word"


def unit_of_script(texts: Iterable[str]) -> Unit:
    """The unit for texts of unnamed language, by the letters in all of them together.

    Only letters of scripts without word spaces: ``char``; none of them: ``word``; both kinds: ``mixed``.
    """
    unspaced = spaced = False
    for text in texts:
        for token in _MIXED_TOKEN.findall(text):
            if _UNSPACED_CHARACTER.match(token):
                unspaced = True
            elif any(c.isalpha() for c in token):
                spaced = True
        if unspaced and spaced:
            return "mixed"
    return "char" if unspaced else "word"


def without_word_spaces(text: str) -> bool:
    """Whether the text has a character of a script without word spaces, so that ``mixed`` units differ from words."""
    return _UNSPACED_CHARACTER.search(text) is not None


def tokenize(text: str, unit: Unit) -> list[str]:
    """The units of an already normalised text, in order; whitespace is never one."""
    if unit == "char":
        return list("".join(text.split()))
    return _MIXED_TOKEN.findall(text) if unit == "mixed" else text.split()
