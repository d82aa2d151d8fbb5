"""A decoder of Transformers over sequences that lie end to end, without padding.

Its layers stay as they are; what they call for attention is ours, which attends within each sequence where it is told of some, and is
Transformers' own otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, LlamaModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from arkfast.models.family import SpeechModel
from arkfast.models.packing import Packing

PACKED = "arkfast_packed"
"""The name of that attention in Transformers' registry."""


def pays(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether attention over packed sequences is one call there, so that packing saves padding and costs nothing."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


def pack(model: SpeechModel) -> bool:
    """Let ``model`` run over packed sequences; whether its decoder can, which it can with PyTorch's fused attention (``sdpa``)."""
    config = model.model.config
    if config._attn_implementation not in ("sdpa", PACKED):
        return False
    config._attn_implementation = PACKED
    return True


def packs(model: SpeechModel) -> bool:
    """Whether ``pack`` was called."""
    return bool(model.model.config._attn_implementation == PACKED)


def packed_options(model: SpeechModel, packing: Packing) -> dict[str, object]:
    """Options with which a model that ``packs`` is called for sequences laid end to end, beside their embeddings [1, P, H].

    Args:
        model: whose decoder runs.
        packing: where the sequences lie.
    """
    # A Llama makes a mask unless it is given one, and a Qwen2 or Qwen3 takes one of each kind of layers. None of them is read.
    llama = isinstance(model.model, LlamaModel)
    mask = packing.place.new_zeros(1, 1, 1, 1) if llama else {"full_attention": None}
    return {"attention_mask": mask, "position_ids": packing.place[None], "use_cache": False, "packing": packing}


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    packing: Packing | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """As Transformers calls an attention: query [1, heads, P, D], key and value [1, kv heads, P, D] → [1, P, heads, D]."""
    if packing is None:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
        return found
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    return packing.attend(q, k, v, scale=scaling, causal=True)[None], None


AttentionInterface.register(PACKED, _attend)
AttentionMaskInterface.register(PACKED, sdpa_mask)
