"""All phases: features of clips of mixed lengths to ids, by the engine and by ``generate`` as the original calls it.

A transcript has three ids for each second of speech, the last of which is its end: the engine is told each row's limit, and in ``generate``
the end token wins at that place. The original pads all clips to the longest, attends to that padding, and goes on until the last row ends.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from shapes import MODELS, TOKENS_PER_SECOND, Shape, mixed_seconds, prompt_length
from transformers import LogitsProcessor, LogitsProcessorList

from arkfast.engine import Engine
from arkfast.records import Batch
from harness import speech
from harness.engine_step import unlikely
from harness.oracles import first
from harness.suite import Provider, Row, Work

Result = tuple[torch.Tensor, torch.Tensor]
"""(ids [B, L] without each row's last one, 0 past them; lengths [B], the last one included)."""


class EndsAt(LogitsProcessor):
    """Makes the end token win as the so-many-th id of each row."""

    def __init__(self, limits: list[int], prompt: int, end: int, device: torch.device) -> None:
        self._prompt, self._end = prompt, end
        rows = defaultdict(list)
        for row, limit in enumerate(limits):
            rows[limit].append(row)
        self._rows = {limit: torch.tensor(those, device=device) for limit, those in rows.items()}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ending = self._rows.get(input_ids.shape[1] - self._prompt + 1)
        return scores if ending is None else scores.index_put((ending, torch.full_like(ending, self._end)), scores.new_tensor(1e30))


@dataclass(frozen=True)
class Recordings:
    """Clips of mixed lengths in no order."""

    model: Any
    engine: Engine
    batch: Batch
    limits: list[int]
    """Ids of each transcript."""
    generate: Any
    """``generate`` with all that the original gives it: (audios, ids, mask, limits) → new ids."""


@functools.lru_cache(maxsize=1)
def engine(H: int, device: torch.device) -> Engine:
    """One for all input sets, so that graphs are captured once."""
    return Engine(speech.model(H, device), allowed=speech.allowed(H))


def limits(H: int, clips: int) -> list[int]:
    return [max(2, round(TOKENS_PER_SECOND * seconds)) for seconds in mixed_seconds(H, clips)]


def generator(model: Any, H: int) -> Any:
    """``generate`` with all that the original gives it: (audios, ids, mask, limits) → new ids."""
    sizes, allowed = MODELS[H], speech.allowed(H)
    end = allowed.stop_ids[0]
    banned = [[i] for i in range(sizes.text, sizes.V) if i != end]

    def generate(audios: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, limits: list[int]) -> torch.Tensor:
        ends = LogitsProcessorList([EndsAt(limits, ids.shape[1], end, ids.device)])
        sequences = model.generate(
            input_ids=ids, attention_mask=mask, audios=audios, do_sample=False, max_new_tokens=max(limits), pad_token_id=sizes.text,
            eos_token_id=end, bad_words_ids=banned, logits_processor=ends,
        )  # fmt: skip
        return sequences[:, ids.shape[1] :]

    return generate


def inputs(shape: Shape, device: torch.device, seed: int) -> Recordings:
    model = speech.model(shape.H, device)
    batch = speech.clips(shape.H, mixed_seconds(shape.H, shape.B), device, seed)
    return Recordings(model, engine(shape.H, device), batch, limits(shape.H, shape.B), generator(model, shape.H))


def without_last(ids: torch.Tensor, lens: torch.Tensor) -> Result:
    inside = torch.arange(ids.shape[1], device=ids.device) < lens[:, None] - 1
    return torch.where(inside, ids, 0), lens


def ours(x: Recordings) -> Result:
    rollout = x.engine.rollout(x.batch, max_new_tokens=x.limits)
    return without_last(rollout.tokens, rollout.lens)


@torch.no_grad()
def original(x: Recordings) -> Result:
    """One batch of the features as they are padded, prompts padded on the left, no lengths."""
    pad = x.model.config.pad_token_id
    new = x.generate(x.batch.mel, *speech.left_padded(x.batch, pad), x.limits)
    return without_last(new, (new != pad).sum(1))


def picked(x: Recordings) -> list[int]:
    """The longest clip, which no batch pads, the shortest, and one between."""
    order = sorted(range(len(x.limits)), key=lambda i: -int(x.batch.mel_lens[i]))
    return [order[0], order[-1], order[len(order) // 2]]


def one(x: Recordings, i: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A clip's features [1, 128, frames] and prompt [1, P], nothing padded."""
    return x.batch.mel[i : i + 1, :, : x.batch.mel_lens[i]], x.batch.input_ids[i : i + 1, : x.batch.prompt_lens[i]]


@torch.no_grad()
def oracle(shape: Shape, x: Recordings) -> dict[int, list[int]]:
    """Ids of the picked clips by ``generate``, one clip at a time; none in bfloat16, where a rounding decides between near ids."""
    if x.model.lm_head.weight.dtype != torch.float32:
        return {}
    found = {}
    for i in picked(x):
        audios, ids = one(x, i)
        found[i] = x.generate(audios, ids, torch.ones_like(ids), [x.limits[i]])[0, : x.limits[i] - 1].tolist()
    return found


@torch.no_grad()
def not_greedy(x: Recordings, i: int, ids: torch.Tensor) -> str | None:
    """A complaint when a clip's ids are not the best ones after each other, by one pass over the clip's prompt and all its ids."""
    audios, prompt = one(x, i)
    count = x.limits[i] - 1
    everything = torch.cat([prompt, ids[None, :count]], 1)
    logits = x.model(input_ids=everything, audios=audios, attention_mask=torch.ones_like(everything)).logits[0]
    scores = logits[prompt.shape[1] - 1 : -1].float().index_fill(1, x.engine.blocked.long(), float("-inf"))
    complaint = unlikely(scores, ids[:count], x.model.lm_head.weight.dtype)
    return f"clip {i}: {complaint}" if complaint else None


def check(clips: slice, x: Recordings, result: Result, oracle: dict[int, list[int]]) -> str | None:
    """Lengths of all, and ids of the picked clips that no padding changes."""
    ids, lens = result
    if lens.tolist() != x.limits:
        return "a transcript has another length than it should"
    complaints = []
    for i in picked(x)[clips]:
        if i in oracle and oracle[i] != ids[i, : x.limits[i] - 1].tolist():
            complaints.append(f"clip {i}: other ids than generate gives for it alone")
        complaints.append(not_greedy(x, i, ids[i]))
    return first(*complaints)


def providers(shape: Shape, device: torch.device) -> list[Provider]:
    longest_only = functools.partial(check, slice(1))
    return [
        Provider(name="ours", run=ours, check=functools.partial(check, slice(None)), ours=True, extra=steps),
        Provider(name="generate", run=original, check=longest_only, note="attends to padding", extra=their_steps),
    ]


def steps(x: Recordings) -> Row:
    """Columns: decode steps of one call."""
    before = x.engine.decode_steps
    ours(x)
    return {"decode_steps": x.engine.decode_steps - before}


def their_steps(x: Recordings) -> Row:
    """The first id comes of the prompt's pass."""
    return {"decode_steps": max(x.limits) - 1}


def work(shape: Shape) -> Work:
    """Products of all phases; the encoder's weights and the prompts' read once, the decoder's at each step of the longest transcript."""
    H, seconds = shape.H, mixed_seconds(shape.H, shape.B)
    counts, prompts = limits(H, shape.B), [prompt_length(one) for one in seconds]
    flop = sum(speech.encoder_flop(H, one) + speech.prefill_flop(H, one) for one in seconds)
    keys = [[length + i for i in range(1, count)] for length, count in zip(prompts, counts, strict=True)]
    flop += sum(speech.step_flop(H, one) for row in keys for one in row)
    numbers = speech.encoder_weights(H) + max(counts) * speech.decoder_weights(H)
    numbers += speech.position_numbers(H) * sum(map(sum, keys))
    return Work(read=speech.itemsize(H) * numbers, flop=flop)
