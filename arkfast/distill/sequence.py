"""A prompt followed by the tokens to be scored, as one row of embeddings.

The student's loss, the teacher's scores and supervised training all read the hidden states that predict given tokens; this is where
those rows are built and those positions found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from arkfast.engine.masks import causal_mask
from arkfast.models.family import Audio, SpeechModel
from arkfast.models.packed import packed_options, packs
from arkfast.models.packing import Packing, counted_off, sent
from arkfast.records import Batch, Rollout

Out = TypeVar("Out")


def encoded(model: SpeechModel, batch: Batch) -> Audio | None:
    """A batch's audio embeddings; None where there is nothing to hear."""
    return None if batch.mel is None else model.get_audio_features(batch.mel, batch.mel_lens, frames=batch.mel_frames)


def at_predicting_positions(
    model: SpeechModel, batch: Batch, audio: Audio | None, rollout: Rollout, head: Callable[[torch.Tensor, torch.Tensor], Out]
) -> Out:
    """Run the decoder over prompts and rollout tokens and hand ``head`` the states that predict the tokens.

    Args:
        model: the one that reads them.
        batch: the prompts.
        audio: what ``encoded`` gave for the batch; encoded once however many rollouts a prompt has.
        rollout: tokens of R rows.
        head: called inside the model's forward with (hidden [N, H], head weight [V, H]); N runs over produced tokens in packed order.
    """
    prompts = model.encode_prompt(batch.input_ids, audio_embeds=audio)
    answers = model.get_input_embeddings()(rollout.tokens)
    if packs(model):
        return _packed(model, batch, rollout, prompts, answers, head)
    prompts = prompts[rollout.owner]
    prompt_lens = batch.prompt_lens[rollout.owner]
    width = prompts.shape[1] + rollout.tokens.shape[1]

    # Each answer follows its prompt without a gap; what stands to the right of a row's end is seen by no position that is read.
    column = torch.arange(width, device=prompts.device)
    place = (column[None] - prompt_lens[:, None]).clamp_(0, rollout.tokens.shape[1] - 1)
    answers = answers.gather(1, place[..., None].expand(-1, -1, answers.shape[-1]))
    prompts = torch.nn.functional.pad(prompts, (0, 0, 0, rollout.tokens.shape[1]))
    rows = torch.where((column[None] < prompt_lens[:, None])[..., None], prompts, answers)

    row, position = rollout.packed_index()
    select = row * width + prompt_lens[row] + position - 1
    mask = causal_mask(model.model, width, rows)
    found: Out = model(inputs_embeds=rows, attention_mask=mask, position_ids=column[None], use_cache=False, select=select, head=head)
    return found


def _packed(
    model: SpeechModel,
    batch: Batch,
    rollout: Rollout,
    prompts: torch.Tensor,
    answers: torch.Tensor,
    head: Callable[[torch.Tensor, torch.Tensor], Out],
) -> Out:
    """``at_predicting_positions`` with rows laid end to end: no product runs over padding, nor over the last token of a row, which predicts
    nothing. ``prompts`` [B, P, H] and ``answers`` [R, L, H] are embeddings."""
    known = batch.prompt_sizes or tuple(batch.prompt_lens.tolist())
    sizes = rollout.sizes or tuple(zip(rollout.owner.tolist(), rollout.lens.tolist(), strict=True))
    owner, lens = np.asarray(sizes, dtype=np.int64).reshape(-1, 2).T
    before = np.asarray(known, dtype=np.int64)[owner]
    rows = before + np.maximum(lens - 1, 0)
    packing = Packing(rows.tolist(), prompts.device)

    # Where each position's embedding lies among those of all prompts and, behind them, all answers.
    row, place = counted_off(rows)
    in_answer = len(prompts) * prompts.shape[1] + row * answers.shape[1] + place - before[row]
    index = np.where(place < before[row], owner[row] * prompts.shape[1] + place, in_answer)
    embeddings = torch.cat([prompts.flatten(0, 1), answers.flatten(0, 1)]).index_select(0, sent(torch.from_numpy(index), prompts.device))

    row, place = counted_off(lens)
    select = (np.cumsum(rows) - rows + before - 1)[row] + place
    chosen = sent(torch.from_numpy(select), prompts.device)
    found: Out = model(inputs_embeds=embeddings[None], select=chosen, head=head, **packed_options(model, packing))
    return found
