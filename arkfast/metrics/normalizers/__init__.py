"""Text normalisation before errors are counted: what two transcripts must agree on to count as equal.

A normaliser that cannot be had as it was asked for is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from arkfast.metrics.normalizers.basic import load_basic
from arkfast.metrics.normalizers.external import load_external
from arkfast.metrics.normalizers.leaderboard import load_leaderboard
from arkfast.metrics.normalizers.options import OPTIONS, NormalizerOption, with_options
from arkfast.metrics.normalizers.packages import load_wetext, load_whisper
from arkfast.metrics.normalizers.record import Normalizer, hash_files, label
from arkfast.records import InputError

NormalizerName = Literal["basic", "whisper", "wetext", "external", "leaderboard", "none"]
NORMALIZERS: tuple[NormalizerName, ...] = ("basic", "whisper", "wetext", "external", "leaderboard", "none")
"""Names that ``get_normalizer`` takes."""

__all__ = ["NORMALIZERS", "OPTIONS", "Normalizer", "NormalizerName", "NormalizerOption", "get_normalizer", "label", "normalize"]


def get_normalizer(
    name: str = "basic",
    *,
    python: str | None = None,
    workdir: Path | None = None,
    leaderboard_path: Path | None = None,
    options: Sequence[str] = (),
    filler_words: Sequence[str] = (),
) -> Normalizer:
    """A normaliser, ready to be applied; whatever is missing is told here, so that a long job can ask before it starts.

    Args:
        name: ``basic`` (our own), ``whisper`` or ``wetext`` (packages of the extra ``eval``), ``external`` (the module ``text_process`` in
            another Python), ``leaderboard`` (a checkout of open_asr_leaderboard) or ``none`` (texts as they are).
        python: interpreter of ``external``.
        workdir: folder that ``external`` runs in.
        leaderboard_path: checkout of ``leaderboard``.
        options: what is taken out of the texts before (``with_options``); nothing by default.
        filler_words: what the option ``fillers`` drops, in place of its own lists.

    Raises:
        InputError: an unknown name or option, a package, module or checkout that is not there, or an option that is missing.
    """
    with_options(_plain("none"), options, filler_words)  # a fault is told before anything is started
    return with_options(_get(name, python, workdir, leaderboard_path), options, filler_words)


def _get(name: str, python: str | None, workdir: Path | None, leaderboard_path: Path | None) -> Normalizer:
    if name == "external":
        if python is None:
            raise InputError("normalizer 'external' needs --text_normalize_python, a Python that has the module text_process")
        return load_external(python, workdir)
    if name == "leaderboard":
        if leaderboard_path is None:
            raise InputError("normalizer 'leaderboard' needs --leaderboard_path, a checkout of open_asr_leaderboard")
        return load_leaderboard(leaderboard_path)
    return _plain(name)


@cache
def _plain(name: str) -> Normalizer:
    """Those that need no option and hold nothing that has to be closed."""
    if name == "basic":
        return load_basic()
    if name == "whisper":
        return load_whisper()
    if name == "wetext":
        return load_wetext()
    if name == "none":
        return Normalizer(name="none", version="1", sha256=hash_files([]), apply=lambda texts, languages: list(texts))
    raise InputError(f"unknown normalizer '{name}': choose one of {', '.join(NORMALIZERS)}")


def normalize(text: str, *, normalizer: str = "basic", language: str | None = None) -> str:
    """One text, by a normaliser that needs no option.

    Args:
        text: a reference or a hypothesis.
        normalizer: ``basic``, ``whisper``, ``wetext`` or ``none``.
        language: the utterance's language, as a code (``en``, ``zh-CN``) or an English name.

    Raises:
        InputError: as ``get_normalizer``.
    """
    return get_normalizer(normalizer).apply([text], [language])[0]
