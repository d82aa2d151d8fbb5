"""The mask of right-padded rows, in the form that each attention of Transformers takes."""

from __future__ import annotations

from typing import Any

import torch


def causal_mask(config: Any, width: int, like: torch.Tensor) -> dict[str, torch.Tensor | None]:
    """Each position sees those up to itself; padding stands to the right of all that counts.

    Args:
        config: the decoder's; its attention decides the mask's form: all but the eager one have a causal path of their own.
        width: positions.
        like: of the dtype and on the device of the hidden states (eager attention adds the mask to its scores).

    Returns:
        What the decoder takes as ``attention_mask``.
    """
    if config._attn_implementation != "eager":
        return {"full_attention": None}
    hidden = torch.full((width, width), torch.finfo(like.dtype).min, dtype=like.dtype, device=like.device)
    return {"full_attention": hidden.triu(1)[None, None]}
