"""Qwen3-ASR in this process, by one of the two names that open-audio-opd has for it; see ``qwen3_asr``."""

from arkfast.distill.teachers.qwen3_asr import OPTIONS, load

__all__ = ["OPTIONS", "load"]
