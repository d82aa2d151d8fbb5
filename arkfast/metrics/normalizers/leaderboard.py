"""``leaderboard``: the normaliser of Hugging Face's Open ASR Leaderboard, from a checkout that the user names.

Nothing of it is copied here. The leaderboard also joins compounds while it aligns,
which is not part of normalisation: our counts, made by jiwer, do not.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arkfast.metrics.languages import canonical
from arkfast.metrics.normalizers.record import Normalizer, by_text, hash_files
from arkfast.records import InputError

PACKAGE = "normalizer"


def load_leaderboard(checkout: Path) -> Normalizer:
    """The normaliser of a checkout of open_asr_leaderboard, whose code is run.

    Its English rules where the language is English or not given, else its multilingual rules with numbers in words.

    Args:
        checkout: its folder, in which ``normalizer/`` lies.

    Raises:
        InputError: no such folder, or a package that it imports is missing; for other languages than English, from ``apply``.
    """
    folder = checkout / PACKAGE
    if not (folder / "__init__.py").is_file():
        raise InputError(
            f"--leaderboard_path {checkout}: has no {PACKAGE}/__init__.py; give the folder of a checkout of open_asr_leaderboard"
        )
    english = _load(checkout, PACKAGE, "EnglishTextNormalizer")()

    def of_language(language: str | None) -> Callable[[str], str]:
        code = canonical(language)
        if code in (None, "en"):
            return english
        multilingual = _load(checkout, f"{PACKAGE}.data_utils", "ml_normalizer")
        return lambda text: multilingual(text, lang=code)

    return Normalizer(name="leaderboard", version="checkout", sha256=hash_files(folder.glob("*.py")), apply=by_text(of_language))


def _load(checkout: Path, module: str, name: str) -> Any:
    """A name of a module of the checkout; the module's own absolute imports of ``normalizer`` find the checkout too."""
    with _first_on_path(checkout):
        try:
            return getattr(importlib.import_module(module), name)
        except ImportError as error:
            raise InputError(
                f"--leaderboard_path {checkout}: {module} cannot be imported ({error}); install what the leaderboard's requirements name"
            ) from error
        except AttributeError as error:
            raise InputError(
                f"--leaderboard_path {checkout}: {module} has no {name}; this version of the leaderboard is not known"
            ) from error


@contextmanager
def _first_on_path(checkout: Path) -> Iterator[None]:
    """The checkout's ``normalizer`` is the one that an import finds; afterwards the name is as it was."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == PACKAGE}
    for name in before:
        del sys.modules[name]
    sys.path.insert(0, str(checkout.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(checkout.resolve()))
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
        sys.modules.update(before)
