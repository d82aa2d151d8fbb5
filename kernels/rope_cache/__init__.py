"""Rotary positions of one decode step's queries and keys, and the keys and values written into a cache, for inference."""

from arkfast.kernels.rope_cache.op import rope_cache

__all__ = ["rope_cache"]
