"""Batches of random features for the tiny model of 97 ids, and what Transformers' generate makes of them."""

from __future__ import annotations

import dataclasses

import torch

from arkfast.data import pad_right
from arkfast.engine import Request
from arkfast.models.arkasr.prompt import Prompt
from arkfast.records import AllowedTokens, Batch

FRAMES = [37, 96, 8, 61, 122]
ALLOWED = AllowedTokens(ranges=((0, 90),), stop_ids=(95,))
PROMPT = Prompt(prefix=(91, 92), audio_id=90, suffix=(93, 5, 6, 94))


def make_batch(frames=FRAMES):
    mel = torch.zeros(len(frames), 128, max(frames))
    for i, n in enumerate(frames):
        mel[i, :, :n] = torch.randn(128, n, generator=torch.Generator().manual_seed(100 + i))
    ids, lens = pad_right([PROMPT.ids(n) for n in frames])
    names = tuple(f"u{i}" for i in range(len(frames)))
    keys = torch.arange(len(frames)) * 7919
    return Batch(ids=names, keys=keys, mel=mel, mel_lens=torch.tensor(frames), input_ids=ids, prompt_lens=lens)


def alone(batch, which):
    """The batch of some of its rows, padded no more than they need."""
    which = [which] if isinstance(which, int) else list(which)
    frames, prompt = int(batch.mel_lens[which].max()), int(batch.prompt_lens[which].max())
    return dataclasses.replace(
        batch,
        ids=tuple(batch.ids[i] for i in which),
        keys=batch.keys[which],
        mel=batch.mel[which][:, :, :frames],
        mel_lens=batch.mel_lens[which],
        input_ids=batch.input_ids[which][:, :prompt],
        prompt_lens=batch.prompt_lens[which],
    )


def requests(batch, max_new_tokens, **options):
    """The batch's rows as requests."""
    return [
        Request(
            mel=batch.mel[i, :, : batch.mel_lens[i]], input_ids=batch.input_ids[i, : batch.prompt_lens[i]], key=int(batch.keys[i]),
            max_new_tokens=max_new_tokens, **options,
        )
        for i in range(batch.size)
    ]  # fmt: skip


def rows(rollout):
    return [row[:n].tolist() for row, n in zip(rollout.tokens, rollout.lens, strict=True)]


def distinct(transcripts):
    return len({token for row in transcripts for token in row})


def generated(model, batch, max_new_tokens, allowed=ALLOWED, penalty=1.0):
    """(ids, log-probabilities) of each clip from ``generate``, one clip at a time, so that nothing is padded."""
    banned = [[i] for i in range(97) if i not in allowed]
    transcripts, logprobs = [], []
    for i in range(batch.size):
        ids = batch.input_ids[i : i + 1, : batch.prompt_lens[i]]
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), audios=batch.mel[i : i + 1, :, : batch.mel_lens[i]], do_sample=False,
            max_new_tokens=max_new_tokens, eos_token_id=95, pad_token_id=96, bad_words_ids=banned or None, repetition_penalty=penalty,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        new = out.sequences[0, ids.shape[1] :]
        scores = torch.cat(out.scores).log_softmax(-1)
        transcripts.append(new.tolist())
        logprobs.append(scores.gather(1, new[:, None])[:, 0])
    return transcripts, logprobs
