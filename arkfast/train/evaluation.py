"""The error rate on a dev set during training, on the same engine that makes the rollouts."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing

import torch

from arkfast.audio import LogMel
from arkfast.data import Batches, FeatureItem, FeaturePipeline
from arkfast.data.tasks import Task
from arkfast.engine import Engine
from arkfast.models.contents import digest_of
from arkfast.models.family import SpeechModel
from arkfast.records import AllowedTokens, Batch, Interface, JsonObject, Utterance
from arkfast.train.checkpoints.identity import contents_of_rows
from arkfast.train.config import TrainConfig
from arkfast.train.feed import batch_of
from arkfast.train.parallel import Parallel

SAMPLES = 24
"""Rows whose transcripts every evaluation logs, from the shortest to the longest: enough for a report to choose those that changed."""


class DevSet:
    """Utterances with references, decoded in batches of similar length and shared out to the ranks.

    Features are made by worker processes of their own, ``--dataloader_num_workers`` of them, which start when an evaluation needs them and
    end with it; those that fit into half of ``--feature_cache_mb`` are kept for the next evaluation.

    Args:
        rows: the evaluation manifest, shortest first; each with its reference. A rank reads the audio of its own rows alone.
        config: batch size, length limits, workers and the memory for features.
        parallel: the processes.
        log_mel: features; None: the task hears nothing.
        task: judges the answers.
        interface: the student's.
    """

    def __init__(
        self, rows: list[Utterance], config: TrainConfig, parallel: Parallel, log_mel: LogMel | None, task: Task, interface: Interface
    ) -> None:
        self._rows, self._own = rows, rows[parallel.rank :: parallel.world]
        self._config, self._parallel, self._hears, self._task, self._interface = config, parallel, log_mel is not None, task, interface
        self._prompt = interface.prompt(config.task)
        size = config.per_device_eval_batch_size
        self._plan = [list(range(first, min(first + size, len(self._own)))) for first in range(0, len(self._own), size)]
        # Every row counts in the WER, so a clip that cannot be read is an error whatever --on_bad_audio says of the rows to train on.
        pipeline = FeaturePipeline(
            log_mel,
            workers=config.dataloader_num_workers,
            prefetch=config.dataloader_prefetch_factor * size,
            max_seconds=config.max_audio_seconds,
            on_bad_audio="fail",
        )
        # Training rows have a cache of their own: ids are unique within a manifest only.
        self._batches = Batches(self._own, pipeline, self._collate, cache_mb=config.feature_cache_mb // 2)
        self.digest = digest_of(contents_of_rows(rows, ()))
        """Of the rows: rates are compared where it is the same."""
        self._shown = {rows[i * len(rows) // SAMPLES].id for i in range(SAMPLES)}

    def _collate(self, items: Sequence[FeatureItem]) -> Batch:
        return batch_of(items, self._prompt, hears=self._hears, pinned=self._parallel.device.type == "cuda")

    def batches(self) -> Generator[Batch, None, None]:
        """This rank's rows in order, once, in batches in main memory. Workers end with the iterator.

        Raises:
            InputError: a clip cannot be used; the message begins with its row.
            WorkersBroken: workers cannot be started.
        """
        with closing(self._batches.planned(self._plan)) as planned:
            for batch in planned:
                assert batch is not None, "a bad row ends the pipeline"
                yield batch

    @torch.no_grad()
    def measure(self, model: SpeechModel, allowed: AllowedTokens, *, stop: Callable[[], object] = bool) -> JsonObject | None:
        """The error rate of greedy answers in percent over all rows, with how many were cut at the length limit. Every rank calls it.

        Args:
            model: what is measured.
            allowed: the ids of its answers.
            stop: looked at between batches; once it is true on any rank, nothing is measured.

        Returns:
            The record; its rate is None where no reference has a word. None where it was stopped.

        Raises:
            InputError, WorkersBroken: as ``batches``.
        """
        started = time.perf_counter()
        device = self._parallel.device
        # A sharded model's memory moves whenever it is gathered, which a captured graph would not follow.
        engine = Engine(model, allowed=allowed, graphs=False if self._parallel.world > 1 else None)
        texts: list[str] = []
        cut = 0
        with closing(self.batches()) as batches:
            for batch in batches:
                if stop():
                    break
                rollout = engine.rollout(batch.to(device), max_new_tokens=self._config.asr_opd_max_new_tokens)
                cut += int((~rollout.stopped).sum())
                rows = rollout.tokens.tolist()
                texts += [self._task.answer(row[:n], self._interface) for row, n in zip(rows, rollout.lens.tolist(), strict=True)]
        if any(self._parallel.gather(bool(stop()))):
            return None
        rate, cut = self._rate(texts, cut)
        shown = [
            {"id": row.id, "language": row.language, "text": row.text, "pred_text": text}
            for row, text in zip(self._own, texts, strict=True)
            if row.id in self._shown
        ]
        return {
            f"eval_{self._task.rate}": rate,
            "eval_utterances": len(self._rows),
            "eval_set": self.digest,
            "eval_cut": cut,
            "eval_seconds": round(time.perf_counter() - started, 2),
            "samples": [sample for of_rank in self._parallel.gather(shown) for sample in of_rank],
        }

    @torch.no_grad()
    def rate_of(self, answers: Callable[[Batch], list[list[int]]]) -> float | None:
        """The error rate in percent of other answers, which ``answers`` gives as ids for a batch on the device. Every rank calls it.

        Returns:
            None where no reference has a word.

        Raises:
            InputError, WorkersBroken: as ``batches``.
        """
        texts: list[str] = []
        with closing(self.batches()) as batches:
            for batch in batches:
                texts += [self._task.answer(ids, self._interface) for ids in answers(batch.to(self._parallel.device))]
        return self._rate(texts, 0)[0]

    def _rate(self, texts: Sequence[str], cut: int) -> tuple[float | None, int]:
        """(error rate in percent, None where no reference has a word; answers that were cut) over all ranks, of this one's texts."""
        own = [*self._task.errors(self._own, texts), cut]
        errors, words, cut = self._parallel.total(torch.tensor(own, dtype=torch.int64, device=self._parallel.device)).tolist()
        return 100.0 * (errors / words) if words else None, cut
