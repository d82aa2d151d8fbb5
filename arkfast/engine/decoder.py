"""One decode step: a token a row through the decoder's layers.

The modules and parameters are those of Transformers' Llama, Qwen2 or Qwen3, so a model that is being trained, wrapped or adapted decodes as
it is. A layer is four matrix products with four fused operations between them, because a layer of Transformers is some 45 kernel launches
of a few microseconds each and a step of 64 rows is bound by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import unwrap
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from arkfast.engine.cache import SlotCache
from arkfast.engine.products import LayerProducts
from arkfast.kernels import add_rms_norm, decode_attention, rope_cache, swiglu


class _Parts(NamedTuple):
    """The classes that a decoder is made of."""

    decoder: type[nn.Module]
    layer: type[nn.Module]
    attention: type[nn.Module]
    mlp: type[nn.Module]
    norm: type[nn.Module]
    rotary: type[nn.Module]


_LLAMA = _Parts(
    llama.LlamaModel, llama.LlamaDecoderLayer, llama.LlamaAttention, llama.LlamaMLP, llama.LlamaRMSNorm, llama.LlamaRotaryEmbedding
)
_QWEN2 = _Parts(
    qwen2.Qwen2Model, qwen2.Qwen2DecoderLayer, qwen2.Qwen2Attention, qwen2.Qwen2MLP, qwen2.Qwen2RMSNorm, qwen2.Qwen2RotaryEmbedding
)
_QWEN3 = _Parts(
    qwen3.Qwen3Model, qwen3.Qwen3DecoderLayer, qwen3.Qwen3Attention, qwen3.Qwen3MLP, qwen3.Qwen3RMSNorm, qwen3.Qwen3RotaryEmbedding
)
_KINDS = (_LLAMA, _QWEN2, _QWEN3)
_SILU = ("silu", "swish")
_FIXED_ANGLES = ("default", "linear", "llama3", "yarn", "proportional")
"""Kinds of rotary embedding whose angles depend on a token's position alone. The others look at the longest row of the batch, and in
``generate`` keep what earlier tokens were turned by."""


def _expect(part: Any, kind: type[nn.Module], where: str) -> None:
    """Raise unless ``part`` is a ``kind`` and computes what one does; sharding and adapters make subclasses that keep its forward."""
    if not isinstance(part, kind):
        raise ValueError(f"Engine: {where} has a {type(part).__name__} in place of a {kind.__name__}")
    # Compared by their code: FSDP2 gives its subclass a copy of the function.
    if unwrap(type(part).forward).__code__ is not unwrap(kind.forward).__code__:
        raise ValueError(f"Engine: {where} has a {type(part).__name__}, whose forward is not that of {kind.__name__}")


def check_decoder(decoder: Any) -> None:
    """Raise ``ValueError`` for a decoder that ``decode_step`` would compute wrongly, naming what stands in the way."""
    kinds = [kind for kind in _KINDS if isinstance(decoder, kind.decoder)]
    if not kinds:
        raise ValueError(
            f"Engine: the decoder is a {type(decoder).__name__}; it must be one of Transformers' "
            f"{', '.join(kind.decoder.__name__ for kind in _KINDS)}"
        )
    kind, config = kinds[0], decoder.config
    _expect(decoder, kind.decoder, "the model")
    _expect(decoder.norm, kind.norm, "the decoder")
    _expect(decoder.rotary_emb, kind.rotary, "the decoder")
    if config.hidden_act not in _SILU:
        raise ValueError(f"Engine: the decoder's activation must be silu, as in Llama, Qwen2 and Qwen3, not {config.hidden_act}")
    if not getattr(config, "is_causal", True):  # Transformers' switch for decoders that are used as encoders
        raise ValueError("Engine: the decoder's config says is_causal=False; a decode step has no later positions to attend to")
    if len(decoder.layers) != config.num_hidden_layers:
        raise ValueError(f"Engine: the decoder has {len(decoder.layers)} layers and its config says {config.num_hidden_layers}")
    if decoder.rotary_emb.rope_type not in _FIXED_ANGLES:
        raise ValueError(
            f"Engine: the decoder's rotary embedding is {decoder.rotary_emb.rope_type!r}, whose angles change with the longest row of a "
            f"batch; those that depend on a token's position alone are {', '.join(_FIXED_ANGLES)}"
        )
    for i, layer in enumerate(decoder.layers):
        where = f"layer {i} of the decoder"
        _expect(layer, kind.layer, "the decoder")
        for part, expected in (
            (layer.self_attn, kind.attention), (layer.mlp, kind.mlp),
            (layer.input_layernorm, kind.norm), (layer.post_attention_layernorm, kind.norm),
        ):  # fmt: skip
            _expect(part, expected, where)
        _check_attention(layer.self_attn, kind, decoder.rotary_emb, where)


def _check_attention(attention: Any, kind: _Parts, rotary: Any, where: str) -> None:
    # A layer of Llama has neither field: it sees everything before it.
    if getattr(attention, "sliding_window", None) is not None:
        raise ValueError(f"Engine: {where} attends in a sliding window; the slot cache keeps whole sequences only")
    if getattr(attention, "layer_type", None) not in (None, "full_attention"):
        raise ValueError(f"Engine: {where} has {attention.layer_type!r}; the slot cache is for full_attention")
    if not attention.is_causal:
        raise ValueError(f"Engine: {where} is not causal; a decode step has no later positions to attend to")
    turned = 2 * rotary.inv_freq.shape[0]
    if turned != attention.head_dim:
        raise ValueError(f"Engine: {where} has heads of {attention.head_dim} features, of which the rotary embedding turns {turned}")
    if kind is _QWEN3:
        for norm in (attention.q_norm, attention.k_norm):
            _expect(norm, kind.norm, where)
        if attention.q_norm.variance_epsilon != attention.k_norm.variance_epsilon:
            raise ValueError(f"Engine: {where} normalises queries and keys with different eps")


def _head_norms(attention: Any) -> dict[str, Any]:
    """What ``rope_cache`` takes of an attention that normalises its heads; nothing of another."""
    if not isinstance(attention, qwen3.Qwen3Attention):
        return {}
    return {"q_norm": attention.q_norm.weight, "k_norm": attention.k_norm.weight, "eps": attention.q_norm.variance_epsilon}


def decode_step(
    decoder: Any, cache: SlotCache, tokens: torch.Tensor, positions: torch.Tensor, limit: int, products: Sequence[LayerProducts]
) -> torch.Tensor:
    """Hidden states after the last norm of one more token for each of the cache's first b rows.

    Args:
        decoder: a ``LlamaModel``, ``Qwen2Model`` or ``Qwen3Model`` that passes ``check_decoder``.
        cache: where the tokens' keys and values go, each at its row's position.
        tokens: [b] int64.
        positions: [b] int64, where they stand.
        limit: no position reaches it, nor the cache's length.
        products: what ``side_by_side`` gives for the decoder, as long as its weights have not moved since.

    Returns:
        [b, H].
    """
    x, residual = decoder.embed_tokens(tokens), None
    cos, sin = (part[:, 0] for part in decoder.rotary_emb(x, positions[:, None]))
    lens = positions + 1
    for layer, (qkv, gate_up), keys, values in zip(decoder.layers, products, cache.keys, cache.values, strict=True):
        attention, mlp, norm = layer.self_attn, layer.mlp, layer.input_layernorm
        x, residual = add_rms_norm(x, residual, norm.weight, norm.variance_epsilon)
        q, k, v = qkv(x) if qkv else (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x))
        query = rope_cache(q, k, v, cos, sin, keys, values, positions, **_head_norms(attention))
        x = attention.o_proj(decode_attention(query, keys, values, lens, limit=limit, scale=attention.scaling))
        norm = layer.post_attention_layernorm
        x, residual = add_rms_norm(x, residual, norm.weight, norm.variance_epsilon)
        gate, up = gate_up(x) if gate_up else (mlp.gate_proj(x), mlp.up_proj(x))
        x = mlp.down_proj(swiglu(gate, up))
    return add_rms_norm(x, residual, decoder.norm.weight, decoder.norm.variance_epsilon)[0]
