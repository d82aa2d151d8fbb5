"""Attention of one query a row over a cache of keys and values with grouped heads, for inference."""

from arkfast.kernels.decode_attention.op import decode_attention

__all__ = ["decode_attention"]
