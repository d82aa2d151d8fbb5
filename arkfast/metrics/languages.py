"""Languages as data names them, and the unit in which each one's errors are counted by convention.

No language is guessed from a text. What is read from texts is their script, by ``unit_of_script``: for data that names no language, or one
that nobody here knows.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

from arkfast.metrics.language_names import CODES, KNOWN, MACRO, SLIPS, key

Unit = Literal["word", "char", "mixed"]
UNITS: tuple[Unit, ...] = ("word", "char", "mixed")
"""``word``: between whitespace. ``char``: a character, whitespace left out. ``mixed``: a character of a script without word spaces (Han,
kana, Thai, Lao, Khmer, Burmese), elsewhere a word."""

ARK_LANGUAGES = ("zh", "en", "de", "ja", "fr", "ko", "es", "pl", "it", "ro", "hu", "cs", "nl", "fi", "hr", "sk", "sl", "et", "lt")
"""The 19 languages of ARK-ASR, as ISO 639-1 codes."""

MIXED = "mixed"
"""What ``canonical`` calls data that switches between languages."""

_WITHOUT_WORD_SPACES = frozenset({"zh", "yue", "wuu", "nan", "hak", "gan", "hsn", "cdo", "cjy", "mnp", "lzh", "ja", "th", "lo", "km", "my"})
_ALSO_IN_LATIN = frozenset({"nan", "hak", "cdo"})  # written in Han characters or, with spaces, in Latin letters
CHINESE = frozenset({"zh", "yue", "wuu", "nan", "hak", "gan", "hsn", "cdo", "cjy", "mnp", "lzh"})
"""The Chinese languages, written ones included."""
_TWO_LANGUAGES = frozenset({"zh", "yue", "en", "ja", "ko"})  # none of these codes is a region's, so "zh-en" cannot mean a country
_SWITCHING = frozenset({"mixed", "codeswitch", "codeswitching", "中英", "中英混合", "中英文混合"})
_UNKNOWN = frozenset({"und", "mul", "mis", "zxx", "unknown", "auto", "none", "null", "n a"})
_SUBTAG = re.compile(r"[a-z0-9]{1,8}")
_REGION_OR_SCRIPT = re.compile(r"[a-z]{2}|\d{3}|hans|hant|latn|cyrl|arab|deva")
# Han (with the iteration mark, zero and Hangzhou numerals), kana (with the prolonged-sound mark and half-width forms); then Thai, Lao,
# Burmese and Khmer
_UNSPACED = (
    "\u3005\u3007\u3021-\u3029\u3031-\u3035\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u3041-\u3096\u3099-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f"
    "\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff"
)
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
_MIXED_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


@lru_cache(maxsize=4096)
def canonical(language: str | None) -> str | None:
    """The language's code in lower case, ISO 639-1's where there is one: ``zh`` for ``zh_CN``, ``cmn-Hans``, ``Mandarin``, ``中文`` or the
    slip ``cn``; ``mixed`` for two languages (``zh-en``).

    Codes and names stand in ``language_names``. One that is not there comes back as its first part in lower case, and ``is_known`` is false
    of it; None, blank text, ``und`` and ``auto`` are None.
    """
    text = (language or "").strip()
    name = key(text)
    if not name or name in _UNKNOWN or name.split()[0] in _UNKNOWN - {"n a"}:
        return None
    if name.replace(" ", "") in _SWITCHING:
        return MIXED
    if found := CODES.get(name) or CODES.get(name.replace(" ", "")) or SLIPS.get(name):
        return found
    parts = name.split()
    codes = [CODES.get(part) for part in parts]
    pair = set(codes[:2])
    if len(pair) == 2 and pair <= _TWO_LANGUAGES and pair != {"zh", "yue"}:
        return MIXED
    if codes[0] == "zh" and len(codes) > 1:  # zh-yue and zh-min-nan are old tags; so are the rest of Chinese's extended ones
        return next((code for code in (CODES.get(" ".join(parts[1:3])), codes[1]) if code in CHINESE), "zh")
    if codes[0] is not None and (len(parts[0]) > 3 or _is_tag(text, parts)):
        return codes[0]
    named = {code for part, code in zip(parts, codes, strict=True) if code is not None and not (len(part) < 4 and part.isascii())}
    return named.pop() if len(named) == 1 else parts[0] if codes[0] is None else name


def _is_tag(text: str, parts: list[str]) -> bool:
    """Whether what follows a code belongs to a tag of BCP 47 or of a locale: "en-US-x-old", "en US", and not "no speech"."""
    joined = not any(c.isspace() for c in text)
    return all((_SUBTAG if joined else _REGION_OR_SCRIPT).fullmatch(part) for part in parts[1:])


def is_known(code: str) -> bool:
    """Whether ``canonical`` gave the code of a language that stands in the table, or ``mixed``."""
    return code in KNOWN or code == MIXED


def near(language: str) -> list[str]:
    """At most three names of the table that a name which is not there resembles."""
    return difflib.get_close_matches(key(language), [name for name in CODES if len(name) > 3], n=3, cutoff=0.75)


def rules_of(code: str | None) -> str | None:
    """The language whose spelling rules hold for a code: its own, or that of the language which it is a variety of."""
    return MACRO.get(code or "", code)


def unit_of(language: str) -> Unit:
    """The unit that a language is scored in by convention: characters where words are not separated by spaces, else words.

    Korean is scored in words (its character rate stands beside it); data that switches between languages in ``mixed`` units.
    """
    code = canonical(language)
    if code == MIXED:
        return "mixed"
    return "char" if code in _WITHOUT_WORD_SPACES else "word"


def unit_of_texts(language: str | None, references: Iterable[str]) -> tuple[Unit, str]:
    """The unit for references of one language, and why it is that one, in words that a result can show.

    The language's convention decides. The script of all references together does where no language is given, where nobody here knows the
    language, where the language is said to have spaces between words and no reference has a letter of such a script, and where a language
    is written in two scripts.

    Args:
        language: as the data gives it.
        references: normalised texts.
    """
    code = canonical(language)
    if code == MIXED:
        return "mixed", f"language {code}"
    script = unit_of_script(references)
    if code is None:
        return script, "no language given: script of the references"
    if not is_known(code):
        return script, f"language {code} is not known: script of the references"
    if code in _ALSO_IN_LATIN and script == "word":
        return script, f"language {code} in letters with spaces between words: script of the references"
    natural = unit_of(code)
    if natural == "word" and script == "char":
        return script, f"language {code}, but the references are in a script without spaces between words: script of the references"
    return natural, f"language {code}"


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
