"""Word error rate during training, on the same engine that makes the rollouts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from arkfast.data.transcript import clean_transcript
from arkfast.engine import Engine
from arkfast.metrics import normalize, word_errors
from arkfast.records import AllowedTokens, Batch, Utterance
from arkfast.train.config import TrainConfig
from arkfast.train.parallel import Parallel

SAMPLES = 8
"""Rows whose transcripts every evaluation logs, from the shortest to the longest."""


class DevSet:
    """Utterances with references, decoded in batches of similar length and shared out to the ranks.

    Args:
        rows: the evaluation manifest, shortest first; each with its reference.
        make_batch: rows → batch.
        tokenizer: ids → text.
        config: batch size and length limit.
        parallel: the processes.
    """

    def __init__(
        self,
        rows: list[Utterance],
        make_batch: Callable[[list[Utterance]], Batch],
        tokenizer: Any,
        config: TrainConfig,
        parallel: Parallel,
    ) -> None:
        self._rows, self._own = rows, rows[parallel.rank :: parallel.world]
        self._make_batch, self._tokenizer, self._config, self._parallel = make_batch, tokenizer, config, parallel
        self._shown = {rows[i * len(rows) // SAMPLES].id for i in range(SAMPLES)}

    @torch.no_grad()
    def measure(self, model: Any, allowed: AllowedTokens) -> dict[str, Any]:
        """Greedy WER in percent over all rows, with the share of transcripts that were cut at the length limit. Every rank calls it."""
        started = time.perf_counter()
        device = self._parallel.device
        # A sharded model's memory moves whenever it is gathered, which a captured graph would not follow.
        engine = Engine(model, allowed=allowed, graphs=False if self._parallel.world > 1 else None)
        texts, cut, size = [], 0, self._config.per_device_eval_batch_size
        for first in range(0, len(self._own), size):
            batch = self._make_batch(self._own[first : first + size]).to(device)
            rollout = engine.rollout(batch, max_new_tokens=self._config.asr_opd_max_new_tokens)
            cut += int((~rollout.stopped).sum())
            rows = rollout.tokens.tolist()
            ids = [row[:length] for row, length in zip(rows, rollout.lens.tolist(), strict=True)]
            texts += [clean_transcript(text) for text in self._tokenizer.batch_decode(ids, skip_special_tokens=False)]
        # by each row's language, as ``arkfast evaluate`` does, so that both say the same
        references = [normalize(row.text or "", language=row.language) for row in self._own]
        heard = [normalize(text, language=row.language) for row, text in zip(self._own, texts, strict=True)]
        counts = word_errors(references, heard)
        own = [int(counts.errors.sum()), int(counts.reference.sum()), cut]
        errors, words, cut = self._parallel.total(torch.tensor(own, dtype=torch.int64, device=device)).tolist()
        shown = [
            {"id": row.id, "language": row.language, "text": row.text, "pred_text": text}
            for row, text in zip(self._own, texts, strict=True)
            if row.id in self._shown
        ]
        return {
            "eval_wer": 100.0 * (errors / words) if words else math.nan,
            "eval_utterances": len(self._rows),
            "eval_cut": cut,
            "eval_seconds": round(time.perf_counter() - started, 2),
            "samples": [sample for of_rank in self._parallel.gather(shown) for sample in of_rank],
        }
