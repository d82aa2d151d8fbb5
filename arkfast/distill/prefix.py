"""Rollouts after prompts that a decoder has run once, for all of their rollouts.

What a decoder makes of a prompt needs no rollout and is the same for all of them: a model without gradient runs its prompts ahead of time,
and the produced tokens alone afterwards. Shape letters: B prompts of up to P positions, R rollouts of up to L tokens, N tokens in all,
H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from arkfast.engine.masks import as_taken
from arkfast.engine.prefill import Prefilled
from arkfast.models.family import SpeechModel
from arkfast.models.packed import PACKED
from arkfast.records import Rollout

Out = TypeVar("Out")

ATTENTIONS = ("sdpa", "eager", PACKED)
"""Attention implementations that take a mask of each row's own, which rollouts after prompts of different lengths need."""


def at_predicting_positions_after(
    model: SpeechModel, prefix: Prefilled, rollout: Rollout, head: Callable[[torch.Tensor, torch.Tensor], Out]
) -> Out:
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
    found: Out = model(
        inputs_embeds=embeddings,
        attention_mask=as_taken(model.model, _mask(lens, prefix.cache.keys[0].shape[2], embeddings)),
        position_ids=lens[:, None] + torch.arange(width, device=embeddings.device),
        past_key_values=_Continued(prefix, rollout.owner),
        use_cache=True,
        head=lambda hidden, weight: head(torch.cat([prefix.last, hidden]).index_select(0, index), weight),
    )
    return found


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

    def __init__(self, prefix: Prefilled, owner: torch.Tensor) -> None:
        self._prefix, self._owner = prefix, owner

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object, **__: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Each rollout's prompt [R, kv heads, P, head size] followed by its own ``keys`` and ``values`` [R, kv heads, L, head size]."""
        prompts = self._prefix.cache.keys[layer].index_select(0, self._owner), self._prefix.cache.values[layer].index_select(0, self._owner)
        return torch.cat([prompts[0], keys], 2), torch.cat([prompts[1], values], 2)
