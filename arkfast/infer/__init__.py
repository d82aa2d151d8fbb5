"""Transcription: a checkpoint and utterances in, rows out."""

from arkfast.infer.result import OUTPUT_FIELDS, Result
from arkfast.infer.stream import DeviceLost
from arkfast.infer.transcriber import Transcriber

__all__ = ["OUTPUT_FIELDS", "DeviceLost", "Result", "Transcriber"]
