"""From features to the first hidden state: encoding and prefill in groups of similar length.

Grouping changes no result: clips are encoded end to end or masked, and prompts are padded on the right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from arkfast.engine.cache import PromptCache
from arkfast.engine.masks import causal_mask
from arkfast.models.family import Audio, SpeechModel
from arkfast.models.packing import sent

LEAST_FILLED = 0.9
"""A clip shorter than this share of its group's longest begins a new group, unless the group is too small to keep the device busy."""


class Budget(NamedTuple):
    """How much of a pass goes to the device together, padding included."""

    most: int
    """What memory and the gain from larger products allow."""
    busy: int
    """What keeps the device busy: below it, padding costs less than a pass of its own."""


ENCODER_FRAMES = {"cuda": Budget(64_000, 64_000), "cpu": Budget(16_000, 1_200)}
"""Mel frames: 64 clips of 10 s on a GPU, where clips are encoded end to end and padding costs two convolutions at most. A CPU gains nothing
from larger products."""
LOOKED_AT = {"cuda": 192_000, "cpu": 28_800}
"""Mel frames that are looked at before encoding begins, to find clips of similar length among them: what is seen of the queue, and not the
number of slots, decides how much of a group is padding."""
PREFILL_TOKENS = {"cuda": Budget(16_384, 2_048), "cpu": Budget(4_096, 192)}
"""Prompt positions: 120 clips of 10 s on a GPU."""


def suited(budgets: Mapping[str, Budget], device: torch.device) -> Budget:
    """The device's own budget; that of a GPU for a kind of device that has none."""
    return budgets.get(device.type, budgets["cuda"])


def groups_of_similar_length(lengths: Sequence[int], budget: Budget) -> Iterator[list[int]]:
    """Indexes into ``lengths``, longest first, so that (members · longest) of a group stays within the budget; a group has at least one."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if group:
            longest = lengths[group[0]]
            wasteful = lengths[i] < LEAST_FILLED * longest and longest * len(group) >= budget.busy
            if wasteful or longest * (len(group) + 1) > budget.most:
                yield group
                group = []
        group.append(i)
    if group:
        yield group


def encode(model: SpeechModel, mels: Sequence[torch.Tensor], budget: Budget | None = None) -> list[torch.Tensor]:
    """Each clip's audio embeddings.

    Args:
        model: one that hears.
        mels: [n_mels, T] log-mel of each clip, on any device.
        budget: frames that the encoder takes at once; None: what suits the device.

    Returns:
        [N, H] of each clip, on the model's device.
    """
    device, heard = model.lm_head.weight.device, model.audio_input
    assert heard is not None, "the model hears nothing"
    budget = budget or suited(ENCODER_FRAMES, device)
    found: list[torch.Tensor] = [torch.empty(0)] * len(mels)
    for group in groups_of_similar_length([mel.shape[1] for mel in mels], budget):
        lens = [mels[i].shape[1] for i in group]
        mel = side_by_side([mels[i] for i in group], device)
        embeddings, _ = model.get_audio_features(mel, torch.tensor(lens).to(device, non_blocking=True), frames=lens)
        for i, own in zip(group, embeddings, strict=True):
            found[i] = own[: heard.token_count(mels[i].shape[1])]
    return found


def side_by_side(mels: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """[B, n_mels, longest] on ``device``, zeros past each clip's end.

    Each clip is copied once, into pinned memory from which a GPU fetches it while the host goes on. PyTorch gives such memory out again
    when it has been fetched, so that one group is written while another is on its way.
    """
    first, longest = mels[0], max(mel.shape[1] for mel in mels)
    pinned = device.type == "cuda" and first.device.type == "cpu"
    padded = torch.empty(len(mels), first.shape[0], longest, dtype=first.dtype, device=first.device, pin_memory=pinned)
    for own, mel in zip(padded, mels, strict=True):
        own[:, : mel.shape[1]] = mel
        own[:, mel.shape[1] :] = 0
    return padded.to(device, non_blocking=True)


@dataclass(frozen=True, kw_only=True)
class Prefilled:
    """What a decoder keeps of m prompts, for any number of answers that go on after them."""

    cache: PromptCache
    """Keys and values [m, kv heads, P, head size] of each layer; what stands past a prompt's end is never seen."""
    last: torch.Tensor
    """[m, H] hidden state at each prompt's last position, which predicts the first id of an answer."""
    lens: torch.Tensor
    """[m] int64 prompt lengths."""
    ids: torch.Tensor
    """[m, P] int64 prompt ids; past a prompt's end they mean nothing."""

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tell the allocator that ``stream`` reads what another stream has computed."""
        for tensor in (*self.cache.keys, *self.cache.values, self.last, self.lens):
            tensor.record_stream(stream)


def prefill(model: SpeechModel, ids: torch.Tensor, lens: torch.Tensor, audio: Audio | None) -> Prefilled:
    """Run the decoder over prompts.

    Args:
        model: whose decoder it is.
        ids: [m, P] int64 prompts, padded on the right.
        lens: [m] int64 their lengths.
        audio: what ``model.get_audio_features`` gave for their clips; None: they hear nothing.
    """
    embeddings = model.encode_prompt(ids, audio_embeds=audio)
    rows, width = ids.shape
    cache = PromptCache()
    hidden = model.model(
        inputs_embeds=embeddings,
        attention_mask=causal_mask(model.model, width, embeddings),
        position_ids=torch.arange(width, device=ids.device)[None],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return Prefilled(cache=cache, last=hidden[torch.arange(rows, device=ids.device), lens - 1], lens=lens, ids=ids)


def prefill_each(model: SpeechModel, prompts: Sequence[torch.Tensor], audio: Sequence[torch.Tensor]) -> Prefilled:
    """``prefill`` of prompts that are not padded yet; their ids then are, with each prompt's first id.

    Args:
        model: whose decoder it is.
        prompts: [P] int64 ids of each prompt.
        audio: [N, H] audio embeddings of each; N = 0 where there is nothing to hear.
    """
    device = model.lm_head.weight.device
    lens = sent(torch.tensor([len(ids) for ids in prompts]), device)
    ids = pad_sequence(list(prompts), batch_first=True)
    ids = ids if ids.device == device else sent(ids, device)
    inside = torch.arange(ids.shape[1], device=device) < lens[:, None]
    ids = torch.where(inside, ids, ids[:, :1])
    if not any(len(own) for own in audio):
        return prefill(model, ids, lens, None)
    counts = sent(torch.tensor([len(own) for own in audio]), device)
    return prefill(model, ids, lens, (pad_sequence(list(audio), batch_first=True), counts))
