"""Recordings that are longer than a clip may be: cut into clips at quiet places, transcribed among all others, joined again."""

from arkfast.infer.long.split import VADS, Splitter, Vad
from arkfast.infer.long.whole import transcribe_long

__all__ = ["VADS", "Splitter", "Vad", "transcribe_long"]
