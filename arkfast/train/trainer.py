"""The training loop: micro-batches to a step, steps to a run.

Knows when things happen; what a step computes is ``distill.step``'s, what a checkpoint holds is ``checkpoint``'s. One process in this
version. A run's losses depend on its seed, its data and its weights alone, so a killed run that is resumed repeats what an
uninterrupted one does.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arkfast.audio import LogMel
from arkfast.data import DataOrder, FeatureCache, Loader, Prompt, collate, extract, read_manifest
from arkfast.data.loader import planned_seconds
from arkfast.data.pipeline import BadAudioPolicy, FeatureItem, FeaturePipeline
from arkfast.distill import CTCHead, LossSum, opd_step, sft_step, td_step
from arkfast.distill.teachers import ArkasrTeacher
from arkfast.distill.teachers.arkasr import check_same_vocabulary
from arkfast.engine import Engine
from arkfast.kernels import fallbacks, reset_usage, usage
from arkfast.models import ArkasrProcessor, load_model
from arkfast.records import AllowedTokens, Batch, InputError, Utterance
from arkfast.train.checkpoint import RunFolder, TrainerState, load_resume
from arkfast.train.config import TrainConfig
from arkfast.train.evaluation import DevSet
from arkfast.train.log import RunLog
from arkfast.train.optim import MasterAdamW, learning_rate


class TrainingStopped(RuntimeError):
    """The run cannot go on; the message says why and what to look at."""


class Trainer:
    """A run, ready to go. Everything that can be wrong with its inputs is found here, before the first step.

    Args:
        config: what to train.

    Raises:
        InputError: with the flag or the file and line that is wrong.
    """

    def __init__(self, config: TrainConfig) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                "WORLD_SIZE is above 1: this version trains in one process; use torchrun --nproc_per_node 1 or plain arkfast train"
            )
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        self.config = config
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device)
        compute = {"auto": torch.bfloat16 if self.device.type == "cuda" else torch.float32, "bfloat16": torch.bfloat16,
                   "float32": torch.float32}[config.model_dtype]  # fmt: skip
        limit = config.train_max_samples if config.train_max_samples > 0 else None
        self._rows = read_manifest(config.train_data, limit=limit)
        dev_rows = read_manifest(config.eval_data) if config.eval_data else None

        self.processor = ArkasrProcessor.from_pretrained(_checkpoint_folder(config.student_model, "--student_model"))
        self._tokenizer = self.processor.tokenizer
        source = load_model(config.student_model, dtype="auto", attn_implementation=config.student_attn_implementation)
        self._export_dtype = source.dtype
        self.model = source.float().to(self.device).eval()  # the family has no dropout: training and evaluation mode compute the same
        self._prompt = Prompt.asr(self._tokenizer, merge_factor=self.model.config.merge_factor)
        self._log_mel = LogMel(self.model.config.whisper_config.num_mel_bins)
        allowed = AllowedTokens.asr(self._tokenizer, self.model.config)
        self._top_k = min(config.opd_top_k, allowed.count)
        self._teacher = self._load_teacher(allowed, compute) if config.stage != "sft" else None

        self._ctc_head: CTCHead | None = None
        if config.ctc_weight:
            text = self.model.config
            head = CTCHead(text.hidden_size, text.vocab_size, int(self._tokenizer.pad_token_id), seed=config.seed)
            self._ctc_head = head.to(self.device)
        extra = [(f"ctc_head.{name}", p) for name, p in self._ctc_head.named_parameters()] if self._ctc_head else []
        self.optimizer = MasterAdamW([*self.model.named_parameters(), *extra], config, compute)
        self.engine = Engine(self.model, allowed=allowed, topk=self._top_k if config.stage == "opd" else 0)

        self._dev = None
        if dev_rows:
            # Training and evaluation rows have separate caches: their ids are unique within a manifest only.
            features = FeatureCache(self._features, config.feature_cache_mb // 2)
            self._dev = DevSet(dev_rows, lambda rows: collate(rows, [features(row) for row in rows], self._prompt), self._tokenizer, config)
        self._bad_audio: list[str] = []
        policy = BadAudioPolicy(config.on_bad_audio, rows=len(self._rows), on_skip=self._pass_over)
        order = DataOrder(
            planned_seconds(self._rows, unreadable=config.max_audio_seconds if policy.skips else None),
            batch_size=config.per_device_train_batch_size,
            seed=config.seed,
            shuffle=config.shuffle_train,
            batch_seconds=config.batch_seconds or None,
        )
        pipeline = FeaturePipeline(
            self._log_mel,
            workers=config.dataloader_num_workers,
            prefetch=config.dataloader_prefetch_factor * order.typical_rows,
            max_seconds=config.max_audio_seconds,
            on_bad_audio=policy,
        )
        self._loader = Loader(order, self._rows, pipeline, self._make_batch, cache_mb=config.feature_cache_mb // 2)
        self.total_steps = config.max_steps or -(-order.batch_count(config.total_epochs) // config.gradient_accumulation_steps)

        self._folder = RunFolder(config)
        self._state = TrainerState(step=0, cursor=0, best_wer=None, best_step=None, skipped=0)
        if resume := self._folder.find_resume(config.resume_from_checkpoint):
            self._state, tensors = load_resume(resume)
            self.optimizer.load_state(tensors)

    def _load_teacher(self, allowed: AllowedTokens, compute: torch.dtype) -> ArkasrTeacher:
        folder = self.config.teacher_model
        assert folder is not None
        tokenizer = ArkasrProcessor.from_pretrained(_checkpoint_folder(folder, "--teacher_model")).tokenizer
        check_same_vocabulary(self._tokenizer, tokenizer, allowed)
        model = load_model(folder, dtype=compute, attn_implementation=self.config.teacher_attn_implementation, device=self.device)
        if model.config.whisper_config.num_mel_bins != self._log_mel.n_mels:
            raise InputError(
                f"--teacher_model {folder}: takes {model.config.whisper_config.num_mel_bins} mel bins, the student {self._log_mel.n_mels}; "
                "the arkasr teacher shares the student's features"
            )
        return ArkasrTeacher(model, allowed=allowed, top_k=self._top_k)

    def _features(self, row: Utterance) -> np.ndarray:
        return extract(row, self._log_mel, max_seconds=self.config.max_audio_seconds)

    def _pass_over(self, _row: Utterance, error: InputError) -> None:
        """Say at once which row a batch goes without; the step's record lists it too."""
        self._bad_audio.append(str(error))
        self._log.note(f"--on_bad_audio {self.config.on_bad_audio}: passed over {error}")

    def _make_batch(self, items: Sequence[FeatureItem]) -> Batch:
        features = [item.features for item in items if isinstance(item.features, np.ndarray)]
        tokenizer = self._tokenizer if self.config.stage == "sft" else None
        return collate([item.utterance for item in items], features, self._prompt, tokenizer)

    def _loss(self, batch: Batch) -> LossSum:
        config = self.config
        if config.stage == "sft":
            return sft_step(self.model, self.engine, batch, ctc_head=self._ctc_head, ctc_weight=config.ctc_weight)
        assert self._teacher is not None
        if config.stage == "td":
            return td_step(self.model, self.engine, self._teacher, batch, max_new_tokens=config.asr_opd_max_new_tokens)
        return opd_step(
            self.model,
            self.engine,
            self._teacher,
            batch,
            tau=config.opd_temperature,
            max_new_tokens=config.asr_opd_max_new_tokens,
            n=config.rollouts_per_prompt,
            temperature=config.rollout_temperature,
            top_p=config.rollout_top_p,
            top_k=config.rollout_top_k,
            seed=config.seed + self._state.step,  # fresh noise when an utterance comes round again
        )

    def run(self) -> TrainerState:
        """Train to the end; returns where the run stands. Progress goes to standard error, one JSON object a step to standard output."""
        config = self.config
        reset_usage()
        with (
            RunLog(
                self._folder.root / "metrics.jsonl",
                start_step=self._state.step,
                total_steps=self.total_steps,
                print_every=config.log_freq,
            ) as log,
            closing(self._loader.batches(self._state.cursor)) as batches,
        ):
            self._log = log
            if self._top_k < config.opd_top_k and config.stage == "opd":
                log.note(f"--opd_top_k {config.opd_top_k}: the vocabulary allows {self._top_k} ids; using {self._top_k}")
            if config.eval_at_start and self._dev and self._state.step == 0:
                self._evaluate(log)
            while self._state.step < self.total_steps:
                self._step(batches, log)
                step, last = self._state.step, self._state.step == self.total_steps
                if self._dev and (last or (config.eval_freq and step % config.eval_freq == 0)):
                    self._evaluate(log)
                if last or (config.save_freq > 0 and step % config.save_freq == 0):
                    self._folder.save(self._state, self._export, self.optimizer.state())
            self._folder.export("last", self._export)
            log.note(_kernel_summary())
        return self._state

    def _step(self, batches: Any, log: RunLog) -> None:
        config, started = self.config, time.perf_counter()
        sums: list[LossSum] = []
        seconds = waited = 0.0
        cursor = self._state.cursor
        for _ in range(config.gradient_accumulation_steps):
            asked = time.perf_counter()
            batch, cursor = next(batches)
            waited += time.perf_counter() - asked
            loss = self._loss(batch.to(self.device))
            loss.total.backward()
            self.optimizer.collect()
            sums.append(LossSum(total=loss.total.detach(), count=loss.count, metrics=loss.metrics))
            seconds += batch.seconds
        state = self._state
        lr = learning_rate(config, state.step, self.total_steps)
        count = torch.stack([loss.count for loss in sums]).sum()
        loss_value, norm, finite = self.optimizer.step(lr, count, torch.stack([loss.total for loss in sums]).sum())
        skipped = 0 if finite else state.skipped + 1
        self._state = TrainerState(step=state.step + 1, cursor=cursor, best_wer=state.best_wer, best_step=state.best_step, skipped=skipped)
        record = {"step": self._state.step, "epoch": self._state.cursor / len(self._rows), "stage": config.stage, "loss": loss_value}
        record |= _means(sums) | {"positions": int(count), "grad_norm": norm, "lr": lr, "skipped": not finite}
        if config.stage != "sft":
            record["teacher_backend"] = config.teacher_backend
        record |= {
            "audio_seconds": round(seconds, 2),
            "data_wait": round(waited, 4),
            "time_per_step": round(time.perf_counter() - started, 4),
        }
        if self._bad_audio:
            record["bad_audio"], self._bad_audio = self._bad_audio, []
        log.step(record)
        if skipped >= config.max_skipped_steps:
            raise TrainingStopped(
                f"step {self._state.step}: loss or gradient norm was not finite for {skipped} steps in a row (--max_skipped_steps); "
                "lower --learning_rate or look at the data of the last steps in metrics.jsonl"
            )

    def _evaluate(self, log: RunLog) -> None:
        assert self._dev is not None
        record = self._dev.measure(self.model, self.engine.allowed, self.device)
        state = self._state
        better = state.best_wer is None or record["eval_wer"] < state.best_wer
        if better:
            self._state = TrainerState(
                step=state.step, cursor=state.cursor, best_wer=record["eval_wer"], best_step=state.step, skipped=state.skipped
            )
        log.evaluation({"step": state.step, **record, "best": better})
        if better:
            self._folder.export("best", self._export)

    def _export(self, folder: Path) -> None:
        """A Transformers checkpoint of the master weights, in the precision of the checkpoint that training began from."""
        model = copy.deepcopy(self.model).to(self._export_dtype)
        with torch.no_grad():
            masters = self.optimizer.masters
            for name, parameter in model.named_parameters():
                if name in masters:
                    parameter.copy_(masters[name])
        model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def _means(sums: list[LossSum]) -> dict[str, float]:
    """Each metric over the window, with one transfer from the device."""
    names = list(sums[0].metrics)
    pairs = torch.stack([torch.stack([torch.stack([*loss.metrics[name]]).float() for name in names]) for loss in sums]).sum(0)
    return {name: total / max(count, 1.0) for name, (total, count) in zip(names, pairs.tolist(), strict=True)}


def _kernel_summary() -> str:
    """Each op that the run called, how often, and on which backend; and why one of them left its kernel on a GPU."""
    calls = [f"{op} {count} x {backend}" for op, backends in usage().items() for backend, count in backends.items()]
    reasons = [f"{op} ran in torch: {reason}" for op, why in fallbacks().items() for reason in why]
    return "; ".join(["kernels: " + ", ".join(calls), *reasons])


def _checkpoint_folder(path: Path, flag: str) -> Path:
    if not (path / "config.json").is_file():
        raise InputError(f"{flag} {path}: no config.json there; give the folder of a checkpoint")
    return path
