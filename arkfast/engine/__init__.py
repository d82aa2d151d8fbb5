"""The decoding engine: one for rollouts, transcription and the service."""

from arkfast.engine.engine import Engine

__all__ = ["Engine"]
