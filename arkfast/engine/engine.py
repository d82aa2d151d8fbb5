"""Decoding: prompts in, ids out.

One cache, one token mask, one stop rule for training's rollouts, transcription and the service. Knows the model's decoder and which
ids are allowed; knows neither text nor files. Prompts are padded on the right and every row keeps its own positions, so a row's tokens
do not depend on its batch mates.
"""

from __future__ import annotations

from typing import Any

import torch

from arkfast.engine.cache import SlotCache
from arkfast.engine.masks import decoder_mask
from arkfast.engine.sampling import gumbel_noise, restrict
from arkfast.kernels import FLAG_NAN, row_log_softmax, topk_lse
from arkfast.records import AllowedTokens, Batch, Rollout

STOP_CHECK_EVERY = 8  # decode steps between two looks at whether every row has stopped: each look waits for the device


class Engine:
    """Decodes batches with one model.

    Args:
        model: an ``ArkasrForConditionalGeneration``; its weights are read at each call, so a trained model needs no new engine.
        allowed: which ids may be produced and which end a row.
        topk: how many of the model's best ids to keep at each produced position (0: none).
        logprobs: keep each produced token's log-probability.
    """

    def __init__(self, model: Any, *, allowed: AllowedTokens, topk: int = 0, logprobs: bool = False) -> None:
        self.model, self.allowed, self.topk, self.logprobs = model, allowed, topk, logprobs
        device = model.lm_head.weight.device
        self.blocked = allowed.blocked(model.lm_head.weight.shape[0], device)
        """Int32 ids that are never produced, as the kernels take them."""
        self._stop_ids = torch.tensor(allowed.stop_ids, dtype=torch.int64, device=device)

    @torch.no_grad()
    def rollout(
        self,
        batch: Batch,
        *,
        max_new_tokens: int,
        n: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        audio: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> Rollout:
        """Produce up to ``max_new_tokens`` ids for every utterance, ``n`` times.

        Args:
            batch: B utterances on the model's device.
            max_new_tokens: length limit, the end token included; a row cut here has ``stopped`` False.
            n: rollouts of each utterance; row ``b * n + i`` is the i-th of utterance b.
            temperature: 0 takes the best id (the lowest on a tie); otherwise ids are drawn from softmax(scores / temperature).
            top_p, top_k: restrict the draw; 1.0 and 0 do not.
            seed: of the noise; with the utterance's id, the rollout's number and the position it fixes every draw.
            audio: what ``model.get_audio_features`` gave for the batch, where it is at hand already.
        """
        device = batch.input_ids.device
        prompt_width = batch.input_ids.shape[1]
        length = prompt_width + max_new_tokens
        audio = self.model.get_audio_features(batch.mel, batch.mel_lens) if audio is None else audio
        embeds = self.model.encode_prompt(batch.input_ids, audio_embeds=audio)
        cache = SlotCache(self.model.config, batch.size, length if n == 1 else prompt_width, dtype=embeds.dtype, device=device)
        cache.write_at(None, prompt_width)
        hidden = self._forward(cache, torch.arange(prompt_width, device=device)[None], from_zero=True, inputs_embeds=embeds)
        hidden = hidden[torch.arange(batch.size, device=device), batch.prompt_lens - 1]

        owner = torch.arange(batch.size, device=device).repeat_interleave(n)
        number = torch.arange(n, device=device).repeat(batch.size)
        cache, hidden, position = cache.repeat(n, length), hidden[owner], batch.prompt_lens[owner]
        keys, done = batch.keys[owner], torch.zeros(len(owner), dtype=torch.bool, device=device)
        lens = torch.zeros(len(owner), dtype=torch.int64, device=device)
        failed = torch.zeros_like(done)
        tokens, topk_ids, logprob = [], [], []
        check_every = STOP_CHECK_EVERY if device.type == "cuda" else 1
        for step in range(max_new_tokens):
            logits = self.model.lm_head(hidden)
            best = topk_lse(logits, max(self.topk, 1), blocked=self.blocked)
            token = best.ids[:, 0].long().clamp_min_(0)  # −1 where every score is NaN; such a row has failed anyway
            failed |= ~done & (best.flags & FLAG_NAN).bool()
            if temperature > 0:
                scores = logits.float().index_fill(-1, self.blocked.long(), float("-inf")) / temperature
                noise = gumbel_noise(keys, number, step, scores.shape[1], seed)
                token = (restrict(scores, top_k=top_k, top_p=top_p) + noise).argmax(-1)
            tokens.append(torch.where(done, 0, token))
            if self.topk:
                topk_ids.append(best.ids)
            if self.logprobs:
                logprob.append(row_log_softmax(logits, token[:, None], blocked=self.blocked)[:, 0])
            lens += ~done
            done = done | torch.isin(token, self._stop_ids)
            if step + 1 == max_new_tokens or ((step + 1) % check_every == 0 and bool(done.all())):
                break
            cache.write_at(position, prompt_width + step + 1)
            hidden = self._forward(cache, position[:, None], from_zero=False, input_ids=token[:, None])[:, 0]
            position = position + 1
        rollout = Rollout(tokens=torch.stack(tokens, 1), lens=lens, stopped=done, owner=owner)
        row, place = rollout.packed_index()
        return Rollout(
            tokens=rollout.tokens,
            lens=lens,
            stopped=done,
            owner=owner,
            failed=failed,
            topk_ids=torch.stack(topk_ids, 1)[row, place] if self.topk else None,
            logprob=torch.stack(logprob, 1)[row, place] if self.logprobs else None,
        )

    def _forward(self, cache: SlotCache, positions: torch.Tensor, *, from_zero: bool, **inputs: torch.Tensor) -> torch.Tensor:
        """Hidden states [R, tokens, H]."""
        return self.model.model(
            **inputs,
            position_ids=positions,
            attention_mask=decoder_mask(self.model.config, positions, cache.limit, cache.keys.dtype, from_zero=from_zero),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
