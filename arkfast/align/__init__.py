"""When each word was said: a small CTC head on what a model hears, and the alignment of a transcript with its scores.

The names load when they are first used: captions ask for words alone, and a command that loads no model must not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arkfast.align.aligner import Aligned, Aligner, Timed, Word
    from arkfast.align.head import CtcHead, HeadConfig, find_head, load_head, save_head
    from arkfast.align.units import Units, spelling
    from arkfast.align.viterbi import Paths, forced_alignment
    from arkfast.align.words import word_spans

__all__ = [
    "Aligned", "Aligner", "CtcHead", "HeadConfig", "Paths", "Timed", "Units", "Word", "find_head", "forced_alignment", "load_head",
    "save_head", "spelling", "word_spans",
]  # fmt: skip
_MODULES = {
    "aligner": ("Aligned", "Aligner", "Timed", "Word"),
    "head": ("CtcHead", "HeadConfig", "find_head", "load_head", "save_head"),
    "units": ("Units", "spelling"),
    "viterbi": ("Paths", "forced_alignment"),
    "words": ("word_spans",),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
