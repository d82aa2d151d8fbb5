"""What is taken out of texts before a normaliser sees them, where somebody asks for it by name.

Each option changes what an error is, so that none is on by itself, and those that are stand in the normaliser's identity: figures are
comparable where the identities are equal.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from arkfast.metrics.languages import CHINESE, MIXED, canonical, rules_of
from arkfast.metrics.normalizers.record import Normalizer, by_text, hash_files
from arkfast.records import InputError

NormalizerOption = Literal["prefix", "tags", "vowel_marks", "dotted_i", "fillers"]
OPTIONS: tuple[NormalizerOption, ...] = get_args(NormalizerOption)
"""Names that ``with_options`` takes, in the order in which they are applied: what ``prefix`` takes away holds angle brackets, which
``tags`` would take for a tag of its own."""

FILLERS = {
    "en": "uh uhh um umm uhm erm er eh hm hmm mm mmm mhm", "de": "äh ähm öh öhm hm hmm mhm", "fr": "euh heu hum hmm",
    "es": "eh em ehm mmm", "it": "eh ehm mmm", "pt": "hum hã hmm", "nl": "uh uhm eh ehm hm hmm",
    "ko": "음 음음 으음", "ja": "えーと えーっと えっと あのー うーん んー",
} | dict.fromkeys(sorted(CHINESE), "嗯 呃")  # fmt: skip
"""Languages → words without meaning that ``fillers`` drops: hesitations alone, since particles such as 啊 or "well" can mean something."""

_WITHOUT_SPACES = re.compile("[\u3040-\u30ff\u3400-\u9fff]")
_PREFIX = re.compile(r"\A\s*(?:language\s+[^<\n]{1,40}<asr_text>|(?:<\|[^|<>]{0,60}\|>\s*)+)", re.IGNORECASE)
_TAG = re.compile(r"\[[^\[\]]*\]|［[^［］]*］|【[^【】]*】|\([^()]*\)|（[^（）]*）|<[^<>\s][^<>]*>|＜[^＜＞\s][^＜＞]*＞")
_LETTER = r"(?:[^\W\u3040-\u30ff\u3400-\u9fff]|[\u0300-\u036f])"  # or an accent that stands behind its letter as a character of its own
_TATWEEL = "\u0640"
_HAMZA = "\u0653\u0654\u0655"  # written over or under a letter, they make it another one
_TURKISH = frozenset({"tr", "az", None})
_DOTTED_I = {ord("İ"): "i", ord("I"): "ı"}

Rewrite = Callable[[str], str]


def with_options(normalizer: Normalizer, options: Sequence[str], filler_words: Sequence[str] = ()) -> Normalizer:
    """The normaliser with options before it; itself where there are none.

    Args:
        normalizer: what comes after them.
        options: names of ``OPTIONS``. ``prefix`` drops what other systems write before a transcript: ``language X<asr_text>`` and
            leading control tokens such as ``<|en|>``. ``tags`` drops what stands in square, round or angle brackets (full-width
            ones included): ``[noise]``, ``(laughter)``, ``<unk>``. ``fillers`` drops hesitations. ``vowel_marks`` drops the vowel and
            cantillation marks of Arabic and Hebrew, and Arabic's tatweel. ``dotted_i`` writes I as ı and İ as i where the language is
            Turkish or Azerbaijani or is not given.
        filler_words: what ``fillers`` drops in every language, in place of its own lists.

    Raises:
        InputError: an option that is not known, or filler words without ``fillers``; from ``apply``: ``fillers`` has no list for a
            text's language.
    """
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        raise InputError(f"unknown normalizer option '{unknown[0]}': choose from {', '.join(OPTIONS)}")
    words = tuple(word for word in (word.strip() for word in filler_words) if word)
    if words and "fillers" not in options:
        raise InputError("--filler_words is of use with --normalizer_options fillers only")
    if not options:
        return normalizer
    chosen = [name for name in OPTIONS if name in options]
    said = tuple(f"fillers: {' '.join(words)}" if name == "fillers" and words else name for name in chosen)

    def of_language(language: str | None) -> Rewrite:
        steps = [_rewrite(name, language, words) for name in chosen]

        def apply(text: str) -> str:
            for step in steps:
                text = step(text)
            return text

        return apply

    before = by_text(of_language)
    return replace(
        normalizer,
        sha256=hash_files([Path(__file__)], normalizer.sha256, unicodedata.unidata_version, *said),
        options=said,
        apply=lambda texts, languages: normalizer.apply(before(texts, languages), languages),
    )


def _rewrite(name: NormalizerOption, language: str | None, words: Sequence[str]) -> Rewrite:
    code = rules_of(canonical(language))
    if name == "prefix":
        return lambda text: _PREFIX.sub("", text)
    if name == "tags":
        return _without_tags
    if name == "fillers":
        unspaced, spaced = _fillers(tuple(words) or _listed(code, language))
        return lambda text: spaced.sub(" ", unspaced.sub(" ", text))
    if name == "vowel_marks":
        return _without_vowel_marks
    return (lambda text: unicodedata.normalize("NFC", text).translate(_DOTTED_I)) if code in _TURKISH else lambda text: text


def _without_tags(text: str) -> str:
    while (shorter := _TAG.sub(" ", text)) != text:  # the innermost brackets go first
        text = shorter
    return text


def _listed(code: str | None, language: str | None) -> tuple[str, ...]:
    if code == MIXED:  # such data is Chinese and English in nearly every published set
        return (*FILLERS["zh"].split(), *FILLERS["en"].split())
    if code not in FILLERS:
        given = "no language" if code is None else f"language '{language}'"
        raise InputError(
            f"normalizer option 'fillers' has words for {', '.join(sorted(FILLERS))}, and a row has {given}; state the language of rows "
            "that carry none with --language, or give the words with --filler_words"
        )
    return tuple(FILLERS[code].split())


@lru_cache(maxsize=64)
def _fillers(words: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What matches the words of scripts without word spaces, anywhere, and what matches the others, where no letter is beside them."""
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    spaced = [re.escape(word) for word in longest_first if not _WITHOUT_SPACES.search(word)]
    unspaced = [re.escape(word) for word in longest_first if _WITHOUT_SPACES.search(word)]
    # a hyphen parts words, as it does for ``basic``, so that "uh-huh" and "uh huh" stay the same text
    alone = rf"(?<!{_LETTER})(?<!{_LETTER}['’])(?:{'|'.join(spaced)})(?!['’]?{_LETTER})"
    nothing = re.compile(r"(?!)")
    return (
        re.compile(f"(?:{'|'.join(unspaced)})+") if unspaced else nothing,
        re.compile(alone, re.IGNORECASE) if spaced else nothing,
    )


def _without_vowel_marks(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFC", text) if not _is_vowel_mark(c))


@lru_cache(maxsize=4096)
def _is_vowel_mark(c: str) -> bool:
    if c == _TATWEEL:
        return True
    if unicodedata.category(c) != "Mn" or c in _HAMZA:
        return False
    return unicodedata.name(c, "").split(" ")[0] in ("ARABIC", "HEBREW")
