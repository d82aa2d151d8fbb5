"""Word error rate during training, on the same engine that makes the rollouts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from arkfast.data import row_seconds
from arkfast.data.transcript import clean_transcript
from arkfast.engine import Engine
from arkfast.metrics import normalize, word_errors
from arkfast.records import AllowedTokens, Batch, InputError, Utterance
from arkfast.train.config import TrainConfig


class DevSet:
    """Utterances with references, decoded in batches of similar length.

    Args:
        rows: the evaluation manifest.
        make_batch: rows → batch.
        tokenizer: ids → text.
        config: batch size and length limit.

    Raises:
        InputError: a row without a reference.
    """

    def __init__(self, rows: list[Utterance], make_batch: Callable[[list[Utterance]], Batch], tokenizer: Any, config: TrainConfig) -> None:
        for row in rows:
            if row.text is None:
                raise InputError(f"{row.name}: no text; WER needs a reference in every row of --eval_data")
        self._rows = sorted(rows, key=row_seconds)
        self._make_batch, self._tokenizer, self._config = make_batch, tokenizer, config

    def measure(self, model: Any, allowed: AllowedTokens, device: torch.device) -> dict[str, Any]:
        """Greedy WER in percent over all rows, with the share of transcripts that were cut at the length limit."""
        started = time.perf_counter()
        engine = Engine(model, allowed=allowed)
        texts, cut, size = [], 0, self._config.per_device_eval_batch_size
        for first in range(0, len(self._rows), size):
            batch = self._make_batch(self._rows[first : first + size]).to(device)
            rollout = engine.rollout(batch, max_new_tokens=self._config.asr_opd_max_new_tokens)
            cut += int((~rollout.stopped).sum())
            rows = rollout.tokens.tolist()
            ids = [row[:length] for row, length in zip(rows, rollout.lens.tolist(), strict=True)]
            texts += [clean_transcript(text) for text in self._tokenizer.batch_decode(ids, skip_special_tokens=False)]
        references = [normalize(row.text or "") for row in self._rows]
        errors = word_errors(references, [normalize(text) for text in texts])
        return {
            "eval_wer": 100.0 * errors.rate(),
            "eval_utterances": len(self._rows),
            "eval_cut": cut,
            "eval_seconds": round(time.perf_counter() - started, 2),
        }
