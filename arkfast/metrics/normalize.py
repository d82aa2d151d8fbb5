"""Text normalisation before errors are counted: what two transcripts must agree on to count as equal.

Knows characters and their Unicode categories; knows no error rates and no files. Normalisers that other packages provide are imported when
they are asked for, and one that is missing is an error: scoring unnormalised text instead would give a number that looks like the one asked
for and is not.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import lru_cache

from arkfast.records import InputError

NORMALIZERS = ("basic", "none", "whisper")
"""Names that ``normalize`` takes."""

_ENGLISH = frozenset({"en", "eng", "english"})
_WITHOUT_SPACES = frozenset({"zh", "zho", "chinese", "mandarin", "yue", "cantonese", "ja", "jpn", "japanese"})
# typographic, modifier and full-width forms, the accents typed in their place, and the one letter that NFKC takes apart into such a form
_APOSTROPHES: dict[int, str] = dict.fromkeys(map(ord, "’‘ʼ＇`´"), "'") | {ord("ŉ"): "'n"}
_ZERO_WIDTH_SPACE = "\u200b"


def normalize(text: str, *, normalizer: str = "basic", language: str | None = None) -> str:
    """``text`` in the form in which errors are counted.

    ``basic`` applies NFKC and case folding; turns punctuation and symbols into spaces (so ``well-known`` is two words), except apostrophes
    inside a word and decimal points inside a number; drops invisible format characters; collapses whitespace. Letters, marks and digits of
    every script stay, Han and kana among them, and no number or word is rewritten.

    Args:
        text: a reference or a hypothesis.
        normalizer: ``basic``; ``none`` (the text as it is); ``whisper`` (the package whisper-normalizer: its English rules when
            ``language`` is English or unknown, else its basic rules, with letters split for Chinese and Japanese).
        language: the utterance's language, as a code (``en``, ``zh-CN``) or an English name; only ``whisper`` looks at it.

    Returns:
        The normalised text; ``normalize`` of it gives it again for ``basic`` and ``none``.

    Raises:
        InputError: an unknown normaliser, or one whose package is not installed; the message says what to install.
    """
    return get_normalizer(normalizer, language)(text)


def get_normalizer(normalizer: str, language: str | None = None) -> Callable[[str], str]:
    """The function that ``normalize`` applies; raises as ``normalize`` does, so that a long job can ask before it starts."""
    if normalizer == "basic":
        return _basic
    if normalizer == "none":
        return str
    if normalizer == "whisper":
        return _whisper(_language_code(language))
    raise InputError(f"unknown normalizer '{normalizer}': choose one of {', '.join(NORMALIZERS)}")


def _basic(text: str) -> str:
    text = "".join(_visible(c) for c in text.translate(_APOSTROPHES))
    # NFKC(casefold(NFKC(x))): case folding can leave a string that is no longer NFKC
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    padded = f" {text} "
    kept = [c if _kept(before, c, after) else " " for before, c, after in zip(padded, text, padded[2:], strict=False)]
    return " ".join("".join(kept).split())


def _kept(before: str, c: str, after: str) -> bool:
    if c == "'":
        return _in_word(before) and _in_word(after)
    if c == ".":
        return before.isdecimal() and after.isdecimal()
    return _in_word(c)


def _visible(c: str) -> str:
    """``c``, or nothing for a format character (soft hyphen, byte-order mark, joiners), save the one that separates words."""
    if c == _ZERO_WIDTH_SPACE:
        return " "
    return "" if unicodedata.category(c) == "Cf" else c


def _in_word(c: str) -> bool:
    return unicodedata.category(c)[0] in "LMN"


def _language_code(language: str | None) -> str | None:
    return language.strip().lower().replace("_", "-").split("-")[0] if language and language.strip() else None


@lru_cache(maxsize=16)
def _whisper(language: str | None) -> Callable[[str], str]:
    try:
        from whisper_normalizer.basic import BasicTextNormalizer
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise InputError(
            "normalizer 'whisper' needs the package whisper-normalizer, which is not installed: pip install 'arkfast[eval]', "
            "or choose normalizer 'basic'"
        ) from error
    if language is None or language in _ENGLISH:
        return EnglishTextNormalizer()
    basic = BasicTextNormalizer(split_letters=language in _WITHOUT_SPACES)
    return lambda text: " ".join(basic(text).split())
