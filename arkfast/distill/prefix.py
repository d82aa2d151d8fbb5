"""A batch's prompts, run through a decoder once and gone on with by any number of rollouts.

What a decoder makes of a prompt needs no rollout and is the same for all of them: a model without gradient runs its prompts ahead of time,
and the produced tokens alone afterwards. Knows keys, values and positions; knows no loss. Shape letters: B prompts of up to P positions,
R rollouts of up to L tokens, N tokens in all, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from arkfast.distill.sequence import Audio
from arkfast.engine.cache import PromptCache
from arkfast.engine.masks import as_taken, causal_mask
from arkfast.records import Batch, Rollout

Out = TypeVar("Out")

ATTENTIONS = ("sdpa", "eager")
"""Attention implementations that take a mask of each row's own, which rollouts after prompts of different lengths need."""


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """What a decoder keeps of B prompts."""

    keys: tuple[torch.Tensor, ...]
    """[B, kv heads, P, head size] of each layer; what stands past a prompt's end is never seen."""
    values: tuple[torch.Tensor, ...]
    """The same of the values."""
    last: torch.Tensor
    """[B, H] hidden state at each prompt's last position, which predicts a rollout's first token."""
    lens: torch.Tensor
    """[B] int64 prompt lengths."""

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tell the allocator that ``stream`` reads what another stream has computed."""
        for tensor in (*self.keys, *self.values, self.last):
            tensor.record_stream(stream)


def prefill(model: Any, batch: Batch, audio: Audio) -> Prefix:
    """Run the decoder over the prompts.

    Args:
        model: an ``ArkasrForConditionalGeneration``.
        batch: the prompts.
        audio: what ``model.get_audio_features`` gave for the batch.
    """
    embeddings = model.encode_prompt(batch.input_ids, audio_embeds=audio)
    rows, width = batch.input_ids.shape
    cache = PromptCache()
    last = model(
        inputs_embeds=embeddings,
        attention_mask=causal_mask(model.model, width, embeddings),
        position_ids=torch.arange(width, device=embeddings.device)[None],
        past_key_values=cache,
        use_cache=True,
        select=torch.arange(rows, device=embeddings.device) * width + batch.prompt_lens - 1,
        head=lambda hidden, _weight: hidden,
    )
    return Prefix(keys=tuple(cache.keys), values=tuple(cache.values), last=last, lens=batch.prompt_lens)


def at_predicting_positions_after(model: Any, prefix: Prefix, rollout: Rollout, head: Callable[[torch.Tensor, torch.Tensor], Out]) -> Out:
    """Run the decoder over the rollouts' tokens and hand ``head`` the states that predict them, as ``at_predicting_positions`` does.

    Args:
        model: the one that computed ``prefix``, with an attention of ``ATTENTIONS``.
        prefix: of the prompts that ``rollout.owner`` points to.
        rollout: tokens of R rows.
        head: called inside the model's forward with (hidden [N, H], head weight [V, H]); N runs over produced tokens in packed order.
    """
    # The last column predicts nothing. Where it is the only one it is run all the same: ``head`` is called inside a forward.
    width = max(rollout.tokens.shape[1] - 1, 1)
    embeddings = model.get_input_embeddings()(rollout.tokens[:, :width])
    lens = prefix.lens[rollout.owner]
    row, position = rollout.packed_index()
    index = torch.where(position == 0, rollout.owner[row], len(prefix.lens) + row * width + position - 1)
    return model(
        inputs_embeds=embeddings,
        attention_mask=as_taken(model.model, _mask(lens, prefix.keys[0].shape[2], embeddings)),
        position_ids=lens[:, None] + torch.arange(width, device=embeddings.device),
        past_key_values=_Continued(prefix, rollout.owner),
        use_cache=True,
        head=lambda hidden, weight: head(torch.cat([prefix.last, hidden]).index_select(0, index), weight),
    )


def _mask(lens: torch.Tensor, prompt: int, embeddings: torch.Tensor) -> torch.Tensor:
    """[R, 1, L, P + L] to be added to scores: a token sees its own prompt of ``lens`` [R], and of its row those up to itself."""
    rows, width, _ = embeddings.shape
    column = torch.arange(prompt + width, device=lens.device)
    seen = torch.where(column < prompt, column < lens[:, None, None], column - prompt <= column[:width, None])
    hidden = torch.finfo(embeddings.dtype).min
    return embeddings.new_zeros(rows, 1, width, prompt + width).masked_fill_(~seen[:, None], hidden)


class _Continued:
    """Keys and values as Transformers' decoder asks for them: it calls ``update`` once a layer and attends to what it gets back.

    A prompt's keys are repeated for its rollouts one layer at a time, and kept once.
    """

    def __init__(self, prefix: Prefix, owner: torch.Tensor) -> None:
        self._prefix, self._owner = prefix, owner

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Each rollout's prompt [R, kv heads, P, head size] followed by its own ``keys`` and ``values`` [R, kv heads, L, head size]."""
        prompts = self._prefix.keys[layer].index_select(0, self._owner), self._prefix.values[layer].index_select(0, self._owner)
        return torch.cat([prompts[0], keys], 2), torch.cat([prompts[1], values], 2)
