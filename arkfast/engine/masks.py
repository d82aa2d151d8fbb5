"""The mask of right-padded rows, in the form that each decoder and each attention of Transformers takes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaModel

DecoderMask = torch.Tensor | None | dict[str, torch.Tensor | None]
"""What a decoder takes as ``attention_mask``."""


def as_taken(decoder: Any, mask: torch.Tensor | None) -> DecoderMask:
    """A mask that is ready (4-dimensional), or None for an attention that has a causal path of its own, as ``decoder`` takes it.

    A Llama has one kind of layers and takes the mask itself; a Qwen2 or Qwen3 could have two kinds, and takes the mask of each by its name.
    """
    return mask if isinstance(decoder, LlamaModel) else {"full_attention": mask}


def causal_mask(decoder: Any, width: int, like: torch.Tensor) -> DecoderMask:
    """Each position sees those up to itself; padding stands to the right of all that counts.

    Args:
        decoder: a ``LlamaModel``, ``Qwen2Model`` or ``Qwen3Model``; its attention decides the mask's form: all but the eager one have a
            causal path of their own.
        width: positions.
        like: of the dtype and on the device of the hidden states (eager attention adds the mask to its scores).

    Returns:
        What the decoder takes as ``attention_mask``.
    """
    if decoder.config._attn_implementation != "eager":
        return as_taken(decoder, None)
    hidden = torch.full((width, width), torch.finfo(like.dtype).min, dtype=like.dtype, device=like.device)
    return as_taken(decoder, hidden.triu(1)[None, None])
