"""Low-rank adapters on the decoder: two thin matrices beside each frozen projection (Hu et al. 2021, "LoRA").

A projection stays the module that it is, under the names that it has, with ``lora_a`` and ``lora_b`` beside its weight; so the decoding
engine, sharding and the optimizer see nothing new.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from arkfast.models.family import SpeechModel

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
A, B = "lora_a", "lora_b"


class LoraLinear(nn.Linear):
    """``y = W x + b + scale · B A x``; A is [rank, in], B [out, rank]."""

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    lora_scale: float

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[…, in] → […, out]."""
        return super().forward(input) + F.linear(F.linear(input, self.lora_a), self.lora_b) * self.lora_scale


def add_adapters(model: SpeechModel, *, rank: int, alpha: float, seed: int, device: torch.device) -> None:
    """Freeze the model and put an adapter beside every projection of its decoder. A new adapter changes nothing: B starts at 0.

    Args:
        model: whole or without weights yet.
        rank: of the adapters.
        alpha: they are scaled by ``alpha / rank``.
        seed: of A, which is drawn as the weights of a linear layer are, uniformly in ± 1 / √in.
        device: where the adapters go; float32.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for layer in model.model.layers:
        for name, linear in layer.named_modules():
            if name.rpartition(".")[2] not in PROJECTIONS:
                continue
            drawn = torch.rand(rank, linear.in_features, generator=generator) * 2 - 1
            linear.__class__ = LoraLinear
            linear.lora_a = nn.Parameter((drawn / math.sqrt(linear.in_features)).to(device))
            linear.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))
            linear.lora_scale = alpha / rank


def merged(weights: Mapping[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """The weights of a plain model: each adapter added to its projection in float32, in the projection's precision, and left out.

    Args:
        weights: a model's by name, adapters among them.
        scale: of the adapters, ``alpha / rank``.
    """
    plain = {name: value for name, value in weights.items() if name.rpartition(".")[2] not in (A, B)}
    for name, a in weights.items():
        stem, _, last = name.rpartition(".")
        if last == A:
            base = plain[f"{stem}.weight"]
            plain[f"{stem}.weight"] = (base.float() + scale * weights[f"{stem}.{B}"].float() @ a.float()).to(base.dtype)
    return plain
