"""When each word was said: a small CTC head on what a model hears, and the alignment of a transcript with its scores."""

from arkfast.align.aligner import Aligned, Aligner, Timed, Word
from arkfast.align.head import CtcHead, HeadConfig, find_head, load_head, save_head
from arkfast.align.units import Units, spelling
from arkfast.align.viterbi import Paths, forced_alignment
from arkfast.align.words import word_spans

__all__ = [
    "Aligned", "Aligner", "CtcHead", "HeadConfig", "Paths", "Timed", "Units", "Word", "find_head", "forced_alignment", "load_head",
    "save_head", "spelling", "word_spans",
]  # fmt: skip
