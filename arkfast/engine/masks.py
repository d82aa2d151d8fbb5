"""Attention masks for right-padded rows, in the form that each attention of Transformers takes."""

from __future__ import annotations

from typing import Any

import torch


def decoder_mask(config: Any, positions: torch.Tensor, keys: int, dtype: torch.dtype, *, from_zero: bool) -> dict[str, torch.Tensor | None]:
    """Each query sees the keys up to its own position.

    Args:
        config: the decoder's; its attention decides the mask's form.
        positions: [R or 1, T] int64 positions of the queries.
        keys: how many keys there are, at positions 0 … keys − 1.
        dtype: of the hidden states (eager attention adds the mask to its scores).
        from_zero: the queries stand at 0 … T − 1 = keys − 1, so that an attention with a causal path of its own needs no mask.

    Returns:
        What the decoder takes as ``attention_mask``.
    """
    eager = config._attn_implementation == "eager"
    if from_zero and not eager:
        return {"full_attention": None}
    visible = torch.arange(keys, device=positions.device)[None, None, None, :] <= positions[:, None, :, None]
    if eager:
        return {"full_attention": torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)}
    return {"full_attention": visible}
