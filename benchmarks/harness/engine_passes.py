"""The engine's two passes over whole clips: features to audio embeddings, and prompts to keys and the first id.

Both are compared with the model's own passes over one clip alone, in the next wider type.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import torch
from shapes import MODELS, Shape
from transformers import DynamicCache

from arkfast.engine.prefill import PREFILL_TOKENS, encode, groups_of_similar_length, prefill_each
from arkfast.records import Batch
from harness import speech
from harness.common import normal
from harness.engine_step import STATE_TOLERANCE, unlikely
from harness.oracles import apart, first
from harness.suite import Provider, Work

Tensors = tuple[torch.Tensor, ...]


def seen(clips: int) -> list[int]:
    """The clips that are compared: the first and the last."""
    return sorted({0, clips - 1})


# -- the encoder -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clips:
    """Clips of one length."""

    model: Any
    batch: Batch
    mels: list[torch.Tensor]
    """[128, frames] of each."""


def encoder_inputs(shape: Shape, device: torch.device, seed: int) -> Clips:
    batch = speech.clips(shape.H, [MODELS[shape.H].clip] * shape.B, device, seed)
    return Clips(speech.model(shape.H, device), batch, speech.mels(batch))


@torch.no_grad()
def encode_ours(x: Clips) -> Tensors:
    return (torch.stack(encode(x.model, x.mels)),)


@torch.no_grad()
def encode_one_by_one(x: Clips) -> Tensors:
    return (torch.cat([x.model.get_audio_features(mel[None])[0] for mel in x.mels]),)


@torch.no_grad()
def encode_at_once(x: Clips) -> Tensors:
    """One tensor of all clips, as the original makes it: nothing is padded here, where all are equally long."""
    return (x.model.get_audio_features(x.batch.mel)[0],)


@torch.no_grad()
def encoder_oracle(shape: Shape, x: Clips) -> Tensors:
    """[n, N, H] of the clips that are compared."""
    dtype = speech.wider(x.model.lm_head.weight.dtype)
    encoder = copy.deepcopy(x.model.audio_encoder).to(dtype)
    return (torch.cat([encoder(x.mels[i][None])[0] for i in seen(shape.B)]),)


def check_encoder(x: Clips, result: Tensors, oracle: Tensors) -> str | None:
    if result[0].shape[0] != len(x.mels):
        return f"{result[0].shape[0]} clips of {len(x.mels)}"
    dtype = x.model.lm_head.weight.dtype
    pairs = zip(seen(len(x.mels)), oracle[0], strict=True)
    return first(*(apart(f"clip {i}", result[0][i], wanted, STATE_TOLERANCE[dtype]) for i, wanted in pairs))


def encoder_providers(shape: Shape, device: torch.device) -> list[Provider]:
    found = [
        Provider(name="ours", run=encode_ours, check=check_encoder, ours=True, graph=True),
        Provider(name="one padded batch", run=encode_at_once, check=check_encoder),
    ]
    if shape.B > 1:
        found.append(Provider(name="one by one", run=encode_one_by_one, check=check_encoder))
    return found


def encoder_work(shape: Shape) -> Work:
    """Weights and features read once, the embeddings written."""
    seconds, itemsize = MODELS[shape.H].clip, speech.itemsize(shape.H)
    numbers = speech.encoder_weights(shape.H) + shape.T // 4 * shape.H
    return Work(read=itemsize * numbers + 4 * 2 * shape.T * speech.N_MELS, flop=shape.B * speech.encoder_flop(shape.H, seconds))


# -- the prompts -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompts:
    """Prompts of one length with random audio embeddings."""

    model: Any
    batch: Batch
    ids: list[torch.Tensor]
    """[P] of each."""
    audio: list[torch.Tensor]
    """[N, H] of each."""
    bias: torch.Tensor
    """[V] −∞ at ids that may not be produced."""


def prefill_inputs(shape: Shape, device: torch.device, seed: int) -> Prompts:
    model = speech.model(shape.H, device)
    batch = speech.clips(shape.H, [MODELS[shape.H].clip] * shape.B, device, seed)
    count = int((batch.input_ids[0] == model.config.audio_token_id).sum())
    make = functools.partial(normal, count, shape.H, device=device, dtype=speech.data_type(device))
    blocked = speech.allowed(shape.H).blocked(MODELS[shape.H].V, device)
    bias = torch.zeros(MODELS[shape.H].V, device=device).index_fill_(0, blocked.long(), float("-inf"))
    return Prompts(model, batch, list(batch.input_ids), [make(seed=seed + i) for i in range(shape.B)], bias)


def heard(embeddings: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of clips of one length as ``get_audio_features`` gives them."""
    audio = torch.stack(embeddings)
    return audio, torch.full((len(audio),), audio.shape[1], device=audio.device)


@torch.no_grad()
def prefill_ours(x: Prompts) -> Tensors:
    """(the first ids [B], the last layer's keys at each prompt's end [B, Hkv, D])."""
    device = x.model.lm_head.weight.device
    ids, keys = [], []
    for group in groups_of_similar_length([len(one) for one in x.ids], PREFILL_TOKENS[device.type]):
        done = prefill_each(x.model, [x.ids[i] for i in group], [x.audio[i] for i in group])
        ids.append((x.model.lm_head(done.last).float() + x.bias).argmax(-1))
        keys.append(done.cache.keys[-1][:, :, -1])
    return torch.cat(ids), torch.cat(keys)


@torch.no_grad()
def prefill_transformers(x: Prompts) -> Tensors:
    """The first pass of ``generate`` over the same embeddings: one batch, a mask, a cache that grows."""
    cache = DynamicCache()
    mask = torch.ones_like(x.batch.input_ids)
    out = x.model(
        input_ids=x.batch.input_ids,
        attention_mask=mask,
        audio_embeds=heard(x.audio),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return (out.logits[:, -1].float() + x.bias).argmax(-1), cache.layers[-1].keys[:, :, -1]


@torch.no_grad()
def prefill_oracle(shape: Shape, x: Prompts) -> Tensors:
    """(scores [n, V], keys [n, Hkv, D]) of the prompts that are compared, each alone."""
    dtype = speech.wider(x.model.lm_head.weight.dtype)
    decoder, found = copy.deepcopy(x.model.model).to(dtype), []
    for i in seen(shape.B):
        cache = DynamicCache()
        embeddings = x.model.encode_prompt(x.ids[i][None], audio_embeds=heard([x.audio[i]])).to(dtype)
        hidden = decoder(inputs_embeds=embeddings, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        found.append((hidden @ x.model.lm_head.weight.to(dtype).t() + x.bias, cache.layers[-1].keys[:, :, -1]))
    scores, keys = (torch.cat(part) for part in zip(*found, strict=True))
    return scores, keys


def check_prefill(x: Prompts, result: Tensors, oracle: Tensors) -> str | None:
    ids, keys = (part[seen(len(x.ids))] for part in result)
    dtype = x.model.lm_head.weight.dtype
    return first(unlikely(oracle[0], ids, dtype), apart("the last layer's keys", keys, oracle[1], STATE_TOLERANCE[dtype]))


def prefill_providers(shape: Shape, device: torch.device) -> list[Provider]:
    return [
        Provider(name="ours", run=prefill_ours, check=check_prefill, ours=True),
        Provider(name="transformers", run=prefill_transformers, check=check_prefill),
    ]


def prefill_work(shape: Shape) -> Work:
    """Weights read once, keys and values written."""
    numbers = speech.decoder_weights(shape.H) + shape.T * speech.position_numbers(shape.H)
    flop = shape.B * speech.prefill_flop(shape.H, MODELS[shape.H].clip)
    return Work(read=speech.itemsize(shape.H) * numbers, flop=flop)
