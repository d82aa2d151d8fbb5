"""Batches of random features and transcripts for the tiny model of 97 ids."""

from __future__ import annotations

import torch

from arkfast.data import pad_right
from arkfast.models.arkasr.prompt import Prompt
from arkfast.records import AllowedTokens, Batch

ALLOWED = AllowedTokens(ranges=((0, 90),), stop_ids=(95,))
PROMPT = Prompt(prefix=(91, 92), audio_id=90, suffix=(93, 5, 6, 94))


def make_batch(frames=(37, 96, 61), targets=((3, 4, 95), (7, 95), (9, 10, 11, 12, 95))):
    mel = torch.zeros(len(frames), 128, max(frames))
    for i, n in enumerate(frames):
        mel[i, :, :n] = torch.randn(128, n, generator=torch.Generator().manual_seed(i))
    ids, lens = pad_right([PROMPT.ids(n) for n in frames])
    target_ids, target_lens = pad_right(targets)
    return Batch(
        ids=tuple(f"u{i}" for i in range(len(frames))), keys=torch.arange(len(frames)), mel=mel, mel_lens=torch.tensor(frames),
        input_ids=ids, prompt_lens=lens, target_ids=target_ids, target_lens=target_lens,
    )  # fmt: skip
