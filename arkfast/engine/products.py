"""Projections of one input as one matrix product: queries, keys and values, and the two of the feed-forward part.

The weights of such projections are moved side by side in memory, and each stays the parameter that it is, under its name, as a part of the
whole. A model that is trained in place therefore decodes with the weights that it has, and nothing has to be copied between steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer


class Product(NamedTuple):
    """Projections of one input."""

    weight: torch.Tensor
    """[Σ outputs, inputs], without gradient; the projections' own memory."""
    bias: torch.Tensor | None
    """[Σ outputs]"""
    sizes: tuple[int, ...]
    """Outputs of each projection."""

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[b, inputs] → what each projection gives, [b, its outputs], as parts of the same rows."""
        return F.linear(x, self.weight, self.bias).split(self.sizes, -1)


class LayerProducts(NamedTuple):
    """Of one layer; None where its projections must be called one by one."""

    qkv: Product | None
    gate_up: Product | None


def side_by_side(decoder: Any) -> list[LayerProducts]:
    """The products of each layer; weights that do not lie side by side yet are moved.

    That changes no value, no name and no parameter, but the memory of parameters: what holds their addresses must ask again, and a tensor
    that shared it, such as another model's parameter, keeps what it has and follows no further change. Weights that are gathered from
    shards stay where they are.

    Args:
        decoder: a ``LlamaModel``, ``Qwen2Model`` or ``Qwen3Model`` that passes ``check_decoder``.
    """
    return [_of_layer(layer) for layer in decoder.layers]


def _of_layer(layer: Any) -> LayerProducts:
    # FSDP2 makes a layer a class of its own, and frees the memory of its gathered weights whenever it sees fit.
    if type(layer) not in (LlamaDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer):
        return LayerProducts(None, None)
    attention, mlp = layer.self_attn, layer.mlp
    return LayerProducts(_product([attention.q_proj, attention.k_proj, attention.v_proj]), _product([mlp.gate_proj, mlp.up_proj]))


def _product(projections: Sequence[Any]) -> Product | None:
    # An adapter or a quantised weight is a class of its own, and a hook may change what a projection gives.
    if any(type(own) is not nn.Linear or own._forward_hooks or own._forward_pre_hooks for own in projections):
        return None
    biases = [own.bias for own in projections if own.bias is not None]
    if len(biases) not in (0, len(projections)):
        return None
    weight, bias = _joined([own.weight for own in projections]), _joined(biases) if biases else None
    if weight is None or (biases and bias is None):
        return None
    return Product(weight, bias, tuple(own.out_features for own in projections))


def _joined(parts: Sequence[nn.Parameter]) -> torch.Tensor | None:
    """The parts one after the other in one piece of memory, of which each is a view; None where they cannot share one."""
    if any(type(part) is not nn.Parameter or part.is_meta for part in parts) or len({(part.dtype, part.device) for part in parts}) > 1:
        return None  # shards, and weights that nobody has filled
    first, place = parts[0].detach(), parts[0].data_ptr()
    shape = (sum(len(part) for part in parts), *first.shape[1:])
    for part in parts:
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and part.is_contiguous() and part.data_ptr() == place):
            break
        place += part.nbytes
    else:
        return first.as_strided(shape, first.stride())
    whole = torch.cat([part.detach() for part in parts])
    for part, own in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = own
    return whole
