"""Prompt embeddings with a clip's audio rows in the place of its placeholder tokens."""

from arkfast.kernels.embed_merge.op import audio_embed_merge

__all__ = ["audio_embed_merge"]
