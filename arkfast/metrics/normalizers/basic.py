"""``basic``: our own normaliser. Unicode's rules for every language, and a few of English, Chinese, Romanian and Turkish that never fail.

No number is written out and no word is respelled, because a rule that is right nine times in ten makes an error of the tenth. What two
transcripts may differ in is case, punctuation, width, and the forms below.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path

from arkfast.metrics import language_names, languages
from arkfast.metrics.normalizers.record import Normalizer, by_text, hash_files

VERSION = "4"

# typographic, modifier and full-width forms, the accents typed in their place, and the one letter that NFKC takes apart into such a form
_APOSTROPHES: dict[int, str] = dict.fromkeys(map(ord, "’‘ʼ＇`´"), "'") | {ord("ŉ"): "'n"}
_ZERO_WIDTH_SPACE = 0x200B
# the marks among Unicode's Default_Ignorable_Code_Point, which choose how the character before them is drawn: the grapheme joiner, Khmer's
# inherent vowels, Mongolian and ideographic variation selectors; and the box that makes a keycap of a digit
_INVISIBLE_MARKS = frozenset(
    [0x034F, 0x17B4, 0x17B5, *range(0x180B, 0x180E), 0x180F, 0x20E3, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]
)


class _Visible(dict[int, str]):
    """For ``str.translate``: apostrophes alike, a space before a vulgar fraction (so that 2½ is not 21/2), and no invisible
    characters (soft hyphen, byte-order mark, joiners, variation selectors), save the one that separates words."""

    def __missing__(self, code: int) -> str:
        c = chr(code)
        if unicodedata.category(c) == "Cf" or code in _INVISIBLE_MARKS:
            c = ""
        elif unicodedata.decomposition(c).startswith("<fraction>"):
            c = f" {c}"
        self[code] = c
        return c


class _Words(dict[int, str]):
    """For ``str.translate``: letters, marks and numbers as they are, apostrophe and full stop too, every other character a space."""

    def __missing__(self, code: int) -> str:
        c = chr(code)
        c = c if c in "'." or unicodedata.category(c)[0] in "LMN" else " "
        self[code] = c
        return c


_VISIBLE = _Visible(_APOSTROPHES | {_ZERO_WIDTH_SPACE: " "})
_WORDS = _Words()
# by then only letters, marks, numbers, apostrophes, full stops and spaces stand there
_LOOSE = re.compile(r"(?<![^' .])'|'(?![^' .])|(?<!\d)\.|\.(?!\d)")

_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3}(?:,\d{3})+)(?![\d,]*\d)", re.ASCII)
_INITIALS = re.compile(r"(?<![^\W_])[a-z](?:\.[a-z])+(?![^\W_])\.?")
_PER_CENT = re.compile(r"(?<!\S)per cent(?!\S)")
_TURKISH_I = {ord("İ"): "i", ord("I"): "ı"}
_CHINESE_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")


def load_basic() -> Normalizer:
    """This module as a ``Normalizer``."""
    return Normalizer(name="basic", version=VERSION, sha256=sha256(), apply=by_text(of_language))


@cache
def sha256() -> str:
    """Of this module, of those that read languages' names, and of the version of Unicode's tables."""
    return hash_files([Path(__file__), Path(languages.__file__), Path(language_names.__file__)], unicodedata.unidata_version)


def of_language(language: str | None) -> Callable[[str], str]:
    """The function that normalises texts of a language, given as a code or an English name; None applies Unicode's rules alone.

    Every language: NFKC and case folding; punctuation and symbols, emoji among them, become spaces (``well-known`` is two words), except
    apostrophes inside a word and decimal points inside a number; invisible format characters and variation selectors go; whitespace
    collapses. Letters, other marks and digits of every script stay. English: 1,000 is 1000, U.S. is us, % and per cent are percent, & is
    and. Chinese: 1,000 is 1000, 5% is 百分之5, 〇 is 零. Romanian: s and t with a cedilla are the letters with a comma below.
    Turkish and Azerbaijani: the small letters of İ and I are i and ı. The function's result is its own normal form.
    """
    return _LANGUAGES.get(languages.rules_of(languages.canonical(language)) or "", unicode_rules)


def unicode_rules(text: str) -> str:
    """What holds for every language."""
    return _words(_fold(text))


def _english(text: str) -> str:
    text = _fold(_join_thousands(text)).replace("&", " and ").replace("%", " percent ")
    text = _words(_INITIALS.sub(_initials, text))
    return _PER_CENT.sub("percent", text)


def _chinese(text: str) -> str:
    # the comma of thousands before folding, which turns the full-width comma of an enumeration into one
    return _words(_CHINESE_PERCENT.sub(r" 百分之\1 ", _fold(_join_thousands(text))).replace("〇", "零"))


def _romanian(text: str) -> str:
    return _words(_fold(text).replace("ş", "ș").replace("ţ", "ț"))


def _turkish(text: str) -> str:
    # these languages have two letters i, with and without a dot, and case folding keeps only one of them apart
    return unicode_rules(text.translate(_TURKISH_I))


def _fold(text: str) -> str:
    # NFKC(casefold(NFKC(x))): case folding can leave a string that is no longer NFKC
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text.translate(_VISIBLE)).casefold())


def _words(text: str) -> str:
    return " ".join(_LOOSE.sub(" ", text.translate(_WORDS)).split())


def _join_thousands(text: str) -> str:
    return _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)


def _initials(match: re.Match[str]) -> str:
    joined = match[0].replace(".", "")
    return joined if match.string[match.end() :].startswith("'") else joined + " "


_LANGUAGES = dict.fromkeys((*languages.CHINESE, languages.MIXED), _chinese) | {
    "en": _english, "ro": _romanian, "tr": _turkish, "az": _turkish,
}  # fmt: skip
