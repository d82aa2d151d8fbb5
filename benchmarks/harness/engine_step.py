"""The engine's decode step: captured, launched kernel by kernel, and as Transformers runs it.

The rows have ended, which changes nothing of what a step computes and lets the same step be run again and again: the engine goes on with
them, writes the same keys at the same place, and puts their next id into the column that ended rows have.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from shapes import MODELS, Shape
from torch.nn import functional as F
from transformers import DynamicCache

from arkfast.engine.cache import PromptCache
from arkfast.engine.prefill import Prefilled
from arkfast.engine.request import Entry, Sampling
from arkfast.engine.rows import DONE, Choosing
from arkfast.engine.slots import Slots
from harness import speech
from harness.common import normal
from harness.launches import launches
from harness.oracles import apart, first
from harness.suite import Provider, Row, Work

Result = tuple[torch.Tensor, torch.Tensor]
"""(the rows' next ids [T], the last layer's keys [T, Hkv, D] of the tokens that the step took)."""
NEW = 8
"""Ids that a row may produce; the slots are longer than the prompts by as many."""
SCORE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.7}
"""How far below the best an id's score may be, in standard deviations of its row's scores: of 152k random scores some 20 come so close."""
STATE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.2}
"""How far states may be off, relative and in norm: 24 layers of random weights make 4 to 6 % of the roundings to bfloat16."""


@dataclass(frozen=True)
class Step:
    """Rows in the midst of their transcripts: random keys of several lengths, and the token that each takes next."""

    model: Any
    keys: tuple[torch.Tensor, ...]
    """[T, Hkv, L, D] of each layer, from position 0 on; so are ``values``."""
    values: tuple[torch.Tensor, ...]
    lens: torch.Tensor
    """[T] int64 keys of each row, which is where its token stands."""
    tokens: torch.Tensor
    """[T] int64"""
    blocked: torch.Tensor
    """int32 ids that may not be produced."""
    slots: dict[str, Slots]
    """By the provider's name."""
    cache: DynamicCache
    """Transformers' own, padded on the left."""
    mask: torch.Tensor
    """[T, L + 1]"""
    bias: torch.Tensor
    """[V] −∞ at ids that may not be produced."""


def inputs(shape: Shape, device: torch.device, seed: int) -> Step:
    model = speech.model(shape.H, device)
    config, (least, most) = model.config, MODELS[shape.H].keys
    lens = torch.linspace(least, most, shape.T).long() if shape.T > 1 else torch.tensor([(least + most) // 2])
    width, size = int(lens.max()), config.hidden_size // config.num_attention_heads
    make = functools.partial(normal, shape.T, config.num_key_value_heads, width, size, device=device, dtype=speech.data_type(device))
    keys, values = (tuple(make(seed=seed + 2 * i + part) for i in range(config.num_hidden_layers)) for part in (0, 1))
    hidden = normal(shape.T, shape.H, device=device, seed=seed + 1_000, dtype=speech.data_type(device))
    allowed = speech.allowed(shape.H)
    blocked = allowed.blocked(shape.V, device)
    stop = torch.tensor(allowed.stop_ids, device=device)
    ids = torch.zeros(shape.T, 1, dtype=torch.int64, device=device)
    prompts = Prefilled(cache=PromptCache(), last=hidden, lens=lens.to(device), ids=ids)
    for layer, pair in enumerate(zip(keys, values, strict=True)):
        prompts.cache.update(*pair, layer)
    slots = {}
    for name in ("graphs", "launched") if device.type == "cuda" else ("launched",):
        wide = allowed.width(shape.V)
        choosing = Choosing(width=wide, blocked=allowed.blocked(wide, device), stop_ids=stop, topk=0, logprobs=False)
        slots[name] = Slots(model, choosing, rows=shape.T, length=width + NEW, new=NEW, graphs=name == "graphs")
        entries = [Entry(id=i, prompt=n, limit=NEW, key=i, number=0, sampling=Sampling()) for i, n in enumerate(lens.tolist())]
        with torch.no_grad():
            slots[name].admit(prompts, range(shape.T), entries)
        slots[name].state.state.fill_(DONE)
    tokens, lens = slots["launched"].state.token.clone(), lens.to(device)
    place = torch.arange(width, device=device) - (width - lens)[:, None]
    cache = DynamicCache()
    for layer, pair in enumerate(zip(keys, values, strict=True)):
        index = place.clamp_min(0)[:, None, :, None].expand(-1, pair[0].shape[1], -1, size)
        cache.update(*(part.gather(2, index) for part in pair), layer)
    mask = F.pad(place >= 0, (0, 1), value=True).long()
    bias = torch.zeros(shape.V, device=device).index_fill_(0, blocked.long(), float("-inf"))
    return Step(model, keys, values, lens, tokens, blocked, slots, cache, mask, bias)


@torch.no_grad()
def ours(name: str, x: Step) -> Result:
    slots = x.slots[name]
    slots.advance(1)
    return slots.state.tokens[:, -1], slots.cache.keys[-1]


@torch.no_grad()
def transformers(x: Step) -> Result:
    """One step as ``generate`` runs it: positions and mask of left-padded rows, the cache longer by one, banned ids, argmax."""
    out = x.model(
        input_ids=x.tokens[:, None], attention_mask=x.mask, position_ids=x.lens[:, None], past_key_values=x.cache, use_cache=True,
        logits_to_keep=1,
    )  # fmt: skip
    ids = (out.logits[:, -1].float() + x.bias).argmax(-1)
    keys = x.cache.layers[-1].keys
    x.cache.crop(-1)
    return ids, keys


def rotated(x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Rotation by halves: x [T, heads, D], angle [T, D / 2]."""
    low, high = x.chunk(2, -1)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)


@torch.no_grad()
def oracle(shape: Shape, x: Step) -> Result:
    """The decoder by its definition in float64: (scores [T, V] float32 with blocked ids at −∞, the last layer's new keys [T, Hkv, D])."""
    decoder, config = x.model.model, x.model.config
    size, groups = config.hidden_size // config.num_attention_heads, config.num_key_value_heads
    half = torch.arange(0, size, 2, device=x.lens.device, dtype=torch.float64)
    angle = x.lens[:, None] * config.rope_parameters["rope_theta"] ** (-half / size)
    seen = torch.arange(x.keys[0].shape[2] + 1, device=x.lens.device)
    hidden_keys = ((seen >= x.lens[:, None]) & (seen < x.keys[0].shape[2]))[:, None, None]

    def norm(h: torch.Tensor, module: Any) -> torch.Tensor:
        return module.weight.double() * h / (h.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt()

    def linear(h: torch.Tensor, module: Any) -> torch.Tensor:
        return F.linear(h, module.weight.double(), None if module.bias is None else module.bias.double())

    h, key = decoder.embed_tokens.weight[x.tokens].double(), torch.empty(0)
    for layer, keys, values in zip(decoder.layers, x.keys, x.values, strict=True):
        attention, mlp, n = layer.self_attn, layer.mlp, norm(h, layer.input_layernorm)
        query = rotated(linear(n, attention.q_proj).view(shape.T, -1, size), angle)
        key = rotated(linear(n, attention.k_proj).view(shape.T, groups, size), angle)
        value = linear(n, attention.v_proj).view(shape.T, groups, 1, size)
        all_keys, all_values = torch.cat([keys.double(), key[:, :, None]], 2), torch.cat([values.double(), value], 2)
        scores = query.view(shape.T, groups, -1, size) @ all_keys.transpose(2, 3) / size**0.5
        mixed = scores.masked_fill(hidden_keys, float("-inf")).softmax(-1) @ all_values
        h = h + linear(mixed.reshape(shape.T, -1), attention.o_proj)
        n = norm(h, layer.post_attention_layernorm)
        h = h + linear(F.silu(linear(n, mlp.gate_proj)) * linear(n, mlp.up_proj), mlp.down_proj)
    scores = linear(norm(h, decoder.norm), x.model.lm_head).float()
    return scores + x.bias, key


def unlikely(scores: torch.Tensor, ids: torch.Tensor, dtype: torch.dtype) -> str | None:
    """A complaint when an id's exact score [n, V] lies below the best of its row by more than rounding explains."""
    free = torch.where(scores.isfinite(), scores, 0.0)
    short = (scores.max(1).values - scores.gather(1, ids[:, None])[:, 0]) / free.std(1)
    most = SCORE_TOLERANCE[dtype]
    wrong = ~(short <= most)
    return f"{int(wrong.sum())} of {len(ids)} ids are not the best: {float(short.max()):.2g} of the spread below" if wrong.any() else None


def check(at: Any, x: Step, result: Result, oracle: Result) -> str | None:
    ids, keys = result
    scores, key = oracle
    dtype = x.keys[0].dtype
    written = keys[torch.arange(len(ids), device=ids.device), :, x.lens if at is None else at]
    return first(unlikely(scores, ids, dtype), apart("the last layer's new key", written, key, STATE_TOLERANCE[dtype]))


def providers(shape: Shape, device: torch.device) -> list[Provider]:
    found = []
    for name in ("graphs", "launched") if device.type == "cuda" else ("launched",):
        run = functools.partial(ours, name)
        found.append(Provider(name=f"ours/{name}", run=run, check=functools.partial(check, None), ours=True, extra=counted(run, device)))
    run, at_the_end = transformers, functools.partial(check, -1)
    found.append(Provider(name="transformers", run=run, check=at_the_end, extra=counted(run, device)))
    return found


def counted(run: Any, device: torch.device) -> Any:
    """Columns of how much a step launches, also as the row's note."""

    def extra(x: Step) -> Row:
        found = launches(lambda: run(x), device)
        return {**found, "note": f"{found['launches'] or 'an unknown number of'} {found['launches_are']} a step"}

    return extra


def work(shape: Shape) -> Work:
    """Weights of the decoder and its head and the rows' keys and values read once, the logits written and read."""
    keys = sum(MODELS[shape.H].keys) // 2
    logits = 2 * shape.T * speech.scored(shape.H)
    numbers = speech.decoder_weights(shape.H) + shape.T * (keys + 1) * speech.position_numbers(shape.H) + logits
    return Work(read=speech.itemsize(shape.H) * numbers, flop=shape.T * speech.step_flop(shape.H, keys))
