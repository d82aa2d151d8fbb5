"""Which corpora there are, and what opens each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from arkfast.manifest.corpora.aishell import open_aishell
from arkfast.manifest.corpora.corpus import Corpus
from arkfast.manifest.corpora.kaldi import open_kaldi
from arkfast.manifest.corpora.librispeech import open_librispeech
from arkfast.manifest.corpora.wenetspeech import open_wenetspeech
from arkfast.records import InputError

CORPORA: dict[str, Callable[[Path, Sequence[str]], Corpus]] = {
    "librispeech": open_librispeech,
    "aishell": open_aishell,
    "wenetspeech": open_wenetspeech,
    "kaldi": open_kaldi,
}
"""Name → what opens the corpus in a folder, for some of its splits (none named: its usual ones)."""


def open_corpus(name: str, root: Path, splits: Sequence[str] = ()) -> Corpus:
    """The corpus ``name`` in the folder ``root``, its rows' paths whole wherever the command is run.

    Raises:
        InputError: no such corpus, no such folder, or the folder is not laid out as the corpus is published.
    """
    if name not in CORPORA:
        raise InputError(f"unknown corpus '{name}': choose one of {', '.join(CORPORA)}")
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder that the corpus was unpacked into")
    # a layout joins paths to the root and to one another, which only whole ones survive; links keep their names
    return CORPORA[name](root.absolute(), splits)
