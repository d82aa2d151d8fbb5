"""The steps of on-policy distillation at the end of a proof, and what is judged of them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from arkfast.prove.config import ProveConfig
from arkfast.prove.outcome import Outcome, not_compared, within
from arkfast.records import InputError, JsonObject
from arkfast.train.config import TrainConfig
from arkfast.train.trainer import Trainer, TrainingStopped

STEPS, WER = "steps of on-policy distillation", "WER before and after"


@dataclass(frozen=True)
class Trained:
    """What a run logged."""

    outcomes: list[Outcome]
    losses: list[float] = field(default_factory=list)
    """Of each step."""
    wer: list[tuple[int, float]] = field(default_factory=list)
    """(step, percent)."""


def left_out(why: str) -> Trained:
    """Nothing was trained, and why."""
    return Trained([not_compared(STEPS, why), not_compared(WER, why)])


def train_config(config: ProveConfig, student: Path, teacher: Path, dev: Path | None, folder: Path) -> TrainConfig:
    """The run's settings."""
    return TrainConfig(
        stage="opd",
        student_model=student,
        teacher_model=teacher,
        teacher_backend=config.teacher_backend,
        train_data=config.train_data,
        eval_data=dev,
        eval_at_start=dev is not None,
        output_dir=folder,
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup_steps=config.steps // 10,
        opd_top_k=config.opd_top_k,
        asr_opd_max_new_tokens=config.max_new_tokens,
        max_audio_seconds=config.max_audio_seconds,
        gates=config.gates,
        model_dtype=config.model_dtype,
        device=config.device,
        seed=config.seed,
        log_freq=max(1, config.steps // 4),
        dataloader_num_workers=0,
    )


def train(run: TrainConfig, *, max_wer_rise: float) -> Trained:
    """Run it, and judge it. What the data or the disk does not allow ends the steps, not the report.

    Raises:
        Interrupted: the system told the run to stop.
    """
    try:
        Trainer(run).run()
        stopped = ""
    except (TrainingStopped, InputError) as error:
        stopped = str(error)
    records = _records(run.output_dir / "metrics.jsonl")
    steps = [record for record in records if "loss" in record]
    losses = [math.nan if record["loss"] is None else float(record["loss"]) for record in steps]
    rates = [(int(record["step"]), record["eval_wer"]) for record in records if "eval_wer" in record]
    wer = [(step, float(rate)) for step, rate in rates if rate is not None and math.isfinite(rate)]
    bad = sum(not math.isfinite(loss) or bool(record.get("skipped")) for loss, record in zip(losses, steps, strict=True))
    tenth = max(1, len(losses) // 10)
    said = f"{len(steps)} of {run.max_steps} steps, {bad} of them skipped or not a number"
    seconds = [float(record["time_per_step"]) for record in steps if record.get("time_per_step") is not None]
    if seconds:
        said += f"; {sorted(seconds)[len(seconds) // 2]:.3g} s a step in the median"
    if losses:
        said += f"; mean loss of the first {tenth} {_mean(losses[:tenth]):.4g}, of the last {tenth} {_mean(losses[-tenth:]):.4g}"
    outcome = Outcome(
        name=STEPS,
        verdict="pass" if not stopped and len(steps) == run.max_steps and not bad else "FAIL",
        found=float(len(steps) - bad),
        tolerance=float(run.max_steps),
        reason="every step is to be taken, and its loss to be a number",
        detail=f"{said}; stopped: {stopped}" if stopped else said,
    )
    return Trained([outcome, _wer(wer, run, max_wer_rise, stopped)], losses, wer)


def _wer(rates: list[tuple[int, float]], run: TrainConfig, most: float, stopped: str) -> Outcome:
    if run.eval_data is None:
        return not_compared(WER, "there is no eval_data, and no row of train_data has a reference")
    if len(rates) < 2:
        return not_compared(WER, "the run ended before WER was measured twice" if stopped else "WER is no number: the references are empty")
    before, after = rates[0][1], rates[-1][1]
    return within(
        WER,
        after - before,
        most,
        reason="points by which WER may rise (--max_wer_rise): so few steps help a little or not at all, and must not do harm",
        detail=f"{before:.2f} % before, {after:.2f} % after step {rates[-1][0]}, on {run.eval_data}",
    )


def _records(path: Path) -> list[JsonObject]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
