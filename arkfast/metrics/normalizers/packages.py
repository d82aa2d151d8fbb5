"""``whisper`` and ``wetext``: normalisers of other packages, imported when they are asked for.

A missing package, or a language that it has no rules for, is an
error: scoring unnormalised text instead would give a number that looks like the one asked for and is not.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from arkfast.installation import install_hint
from arkfast.metrics.languages import canonical
from arkfast.metrics.normalizers import basic
from arkfast.metrics.normalizers.record import Normalizer, by_text, hash_files
from arkfast.records import InputError

_SPLIT_LETTERS = frozenset({"zh", "yue", "ja"})
_WETEXT_LANGUAGES = ("zh", "en", "ja")


def load_whisper() -> Normalizer:
    """The package whisper-normalizer.

    Its English rules where the language is English or not given, else its basic rules, with letters split for Chinese, Cantonese and
    Japanese.

    Raises:
        InputError: the package is not installed.
    """
    try:
        from whisper_normalizer.basic import BasicTextNormalizer
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise _missing("whisper", "whisper-normalizer") from error

    def of_language(language: str | None) -> Callable[[str], str]:
        code = canonical(language)
        if code in (None, "en"):
            return EnglishTextNormalizer()
        rules = BasicTextNormalizer(split_letters=code in _SPLIT_LETTERS)
        return lambda text: " ".join(rules(text).split())

    files = _files("whisper_normalizer", (".py", ".json"))
    return Normalizer(name="whisper", version=metadata.version("whisper-normalizer"), sha256=hash_files(files), apply=by_text(of_language))


def load_wetext() -> Normalizer:
    """The package wetext, which writes numbers, dates and units out as they are read, for Chinese, English and Japanese; then ``basic``.

    Raises:
        InputError: the package is not installed; from ``apply``: a text's language is another one or is not given.
    """
    try:
        from wetext import Normalizer as Wetext
    except ImportError as error:
        raise _missing("wetext", "wetext") from error

    def of_language(language: str | None) -> Callable[[str], str]:
        code = canonical(language)
        if code not in _WETEXT_LANGUAGES:
            given = "no language" if language is None else f"language '{language}'"
            raise InputError(
                f"normalizer 'wetext' has rules for {', '.join(_WETEXT_LANGUAGES)}, and a row has {given}; state the language of rows that "
                "carry none with --language, or choose normalizer 'basic'"
            )
        read, clean = Wetext(lang=code, operator="tn"), basic.of_language(language)
        return lambda text: clean(read.normalize(text)) if text.strip() else ""

    files = _files("wetext", (".py", ".fst"))
    return Normalizer(
        name="wetext", version=metadata.version("wetext"), sha256=hash_files(files, basic.sha256()), apply=by_text(of_language)
    )


def _files(package: str, endings: tuple[str, ...]) -> list[Path]:
    from importlib.util import find_spec

    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    assert folders, f"{package} was imported"
    return [path for folder in folders for path in Path(folder).rglob("*") if path.suffix in endings]


def _missing(normalizer: str, package: str) -> InputError:
    return InputError(
        f"normalizer '{normalizer}' needs the package {package}, which is not installed: {install_hint('eval')}, or choose "
        "normalizer 'basic'"
    )
