"""One decode step: a token a row through the decoder's layers.

The modules and parameters are those of Transformers' Qwen2, so a model that is being trained, wrapped or adapted decodes as it is. Between
its matrix products stand four fused operations, because a layer of Transformers is some 45 kernel launches of a few microseconds each and
a step of 64 rows is bound by them. Knows layers; knows no sampling.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2MLP, Qwen2RMSNorm

from arkfast.engine.cache import SlotCache
from arkfast.kernels import add_rms_norm, decode_attention, rope_cache, swiglu


def check_decoder(decoder: Any) -> None:
    """Raise ``ValueError`` for a decoder that ``decode_step`` would compute wrongly."""
    config = decoder.config
    if config.hidden_act != "silu":
        raise ValueError(f"Engine: the decoder's activation must be silu, as in Qwen2, not {config.hidden_act}")
    for i, layer in enumerate(decoder.layers):
        for part, kind in ((layer.self_attn, Qwen2Attention), (layer.mlp, Qwen2MLP), (layer.input_layernorm, Qwen2RMSNorm)):
            if not isinstance(part, kind):
                raise ValueError(f"Engine: layer {i} of the decoder has a {type(part).__name__} in place of a {kind.__name__}")
        if layer.self_attn.sliding_window is not None:
            raise ValueError(f"Engine: layer {i} of the decoder attends in a sliding window; the slot cache keeps whole sequences only")


def decode_step(decoder: Any, cache: SlotCache, tokens: torch.Tensor, positions: torch.Tensor, limit: int) -> torch.Tensor:
    """Hidden states after the last norm of one more token for each of the cache's first b rows.

    Args:
        decoder: a ``Qwen2Model``.
        cache: where the tokens' keys and values go, each at its row's position.
        tokens: [b] int64.
        positions: [b] int64, where they stand.
        limit: no position reaches it, nor the cache's length.

    Returns:
        [b, H].
    """
    x, residual = decoder.embed_tokens(tokens), None
    cos, sin = (part[:, 0] for part in decoder.rotary_emb(x, positions[:, None]))
    lens = positions + 1
    for layer, keys, values in zip(decoder.layers, cache.keys, cache.values, strict=True):
        attention, mlp, norm = layer.self_attn, layer.mlp, layer.input_layernorm
        x, residual = add_rms_norm(x, residual, norm.weight, norm.variance_epsilon)
        query = rope_cache(attention.q_proj(x), attention.k_proj(x), attention.v_proj(x), cos, sin, keys, values, positions)
        x = attention.o_proj(decode_attention(query, keys, values, lens, limit=limit, scale=attention.scaling))
        norm = layer.post_attention_layernorm
        x, residual = add_rms_norm(x, residual, norm.weight, norm.variance_epsilon)
        x = mlp.down_proj(swiglu(mlp.gate_proj(x), mlp.up_proj(x)))
    return add_rms_norm(x, residual, decoder.norm.weight, decoder.norm.variance_epsilon)[0]
