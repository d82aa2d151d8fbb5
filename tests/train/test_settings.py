"""Settings that a resume changes are said, more epochs go on from where the data stands, and numbers out of range name their flag."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from arkfast.console import ConsoleOptions
from arkfast.train.checkpoints.identity import IDENTITY
from arkfast.train.checkpoints.settings import NOTED, changed
from arkfast.train.config import TrainConfig
from arkfast.train.trainer import Trainer

ELSEWHERE = {
    "output_dir", "gradient_accumulation_steps", "sharding", "rollout_copy", "packed_decoder", "shard_group_size",
    "activation_checkpointing", "distributed_timeout",
    "per_device_eval_batch_size", "dataloader_num_workers", "dataloader_prefetch_factor", "feature_cache_mb", "calibrate_only",
    "calibration_batches", "gates", "gate_unfinished", "gate_window", "gate_overlap", "gate_dev_wer", "max_skipped_steps", "eval_freq",
    "eval_at_start", "save_freq", "max_ckpt_to_keep", "async_save", "resume_from_checkpoint", "allow_changed", "verify_checkpoints",
    "log_freq", "log_json", "tensorboard", "profile_steps", "device", "num_threads",
}  # fmt: skip
"""Where, how fast and how closely watched a run runs: nothing that is learnt depends on these."""


def config(world: Path, out: Path, **overrides: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "stage": "sft", "student_model": world / "student", "train_data": world / "train.jsonl", "output_dir": out, "learning_rate": 1e-3,
        "asr_opd_max_new_tokens": 4, "per_device_train_batch_size": 2, "gates": "off", "dataloader_num_workers": 0, "seed": 3,
        "model_dtype": "float32", "num_threads": 1, "device": "cpu", "calibration_batches": 0,
    }  # fmt: skip
    return TrainConfig(**{**values, **overrides})


def seen(out: Path) -> list[float]:
    return [row["epoch"] for line in (out / "metrics.jsonl").read_text().splitlines() if "loss" in (row := json.loads(line))]


def test_every_flag_is_a_part_of_the_run_or_said_when_it_changes_or_moves_no_number() -> None:
    names = {field.name for field in dataclasses.fields(TrainConfig)} - {field.name for field in dataclasses.fields(ConsoleOptions)}
    groups = (set(IDENTITY), set(NOTED), ELSEWHERE)
    assert names == set.union(*groups), "a new flag belongs into one of them"
    assert sum(map(len, groups)) == len(names), "and into one only"


def test_one_sentence_names_all_that_changed(tmp_path: Path) -> None:
    (tmp_path / "dev.jsonl").touch()
    (tmp_path / "link.jsonl").symlink_to("dev.jsonl")
    before = {"learning_rate": 1e-6, "opd_top_k": 32, "eval_data": str(tmp_path / "dev.jsonl"), "log_freq": 1, "teacher_prompt": None}
    assert changed(before, before) is None
    assert changed({}, before) is None, "an earlier version said nothing"
    assert changed(before, {**before, "eval_data": str(tmp_path / "link.jsonl"), "log_freq": 5}) is None
    now = {**before, "learning_rate": 1e-5, "eval_data": None, "teacher_prompt": "Write it down"}
    assert changed(before, now) == (
        "the run goes on with other settings than before: --learning_rate 1e-05 (before: 1e-06), --teacher_prompt Write it down (before: "
        f"none), --eval_data none (before: {tmp_path / 'dev.jsonl'})"
    )


def test_a_resume_says_what_it_changes_and_its_own_checkpoints_remember(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def notes(out: Path, **options: Any) -> list[str]:
        capsys.readouterr()
        Trainer(config(world, out, **options)).run()
        return [line for line in capsys.readouterr().err.splitlines() if "other settings" in line]

    out = tmp_path / "run"
    assert notes(out, max_steps=2, save_freq=1) == []
    (line,) = notes(out, max_steps=3, lr_scheduler_type="cosine", eval_data=world / "dev.jsonl", resume_from_checkpoint="auto")
    assert line.endswith(
        "--max_steps 3 (before: 2), --lr_scheduler_type cosine (before: constant), "
        f"--eval_data {world / 'dev.jsonl'} (before: none)"
    )  # fmt: skip
    same = {"max_steps": 3, "lr_scheduler_type": "cosine", "eval_data": world / "dev.jsonl"}
    assert notes(out, resume_from_checkpoint="auto", **same) == []
    back = {"resume_from_checkpoint": str(out / "checkpoints" / "global_step_1")}
    (line,) = notes(out, **same, **back)
    assert "--max_steps 3 (before: 2)" in line, "compared with the checkpoint, not with the launch before"
    elsewhere = shutil.copytree(out / "checkpoints" / "global_step_1", tmp_path / "elsewhere")
    (line,) = notes(tmp_path / "other", **same, resume_from_checkpoint=str(elsewhere))
    assert "--lr_scheduler_type cosine (before: constant)" in line


@pytest.mark.parametrize("options", [{}, {"per_device_train_batch_size": 8, "batch_seconds": 1.3}], ids=["rows", "seconds"])
def test_more_epochs_after_a_finished_run_are_trained_whole(world: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """Five rows, two of them in a batch: an epoch's last batch is cut short where the data ends, and the next epoch begins after it."""
    out = tmp_path / "run"
    first = Trainer(config(world, out, total_epochs=1, **options)).run()
    assert (first.cursor, seen(out)[-1]) == (5, 1.0)
    second = Trainer(config(world, out, total_epochs=2, resume_from_checkpoint="auto", **options)).run()
    assert (second.cursor, seen(out)[-1]) == (10, 2.0)
    assert second.step == len(seen(out)) == 2 * first.step
    third = Trainer(config(world, out, total_epochs=4, resume_from_checkpoint="auto", **options)).run()
    assert (third.cursor, seen(out)[-1]) == (20, 4.0)


def test_a_run_that_has_nothing_left_to_do_says_so(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    Trainer(config(world, out, max_steps=4)).run()
    weights = (out / "last" / "model.safetensors").read_bytes()
    for options, said in (
        ({"max_steps": 3}, "--max_steps 3: the run stands after step 4 already, so nothing is trained; give more to go on"),
        ({"max_steps": 4}, "--max_steps 4: the run stands after step 4 already, so nothing is trained; give more to go on"),
    ):
        capsys.readouterr()
        assert Trainer(config(world, out, resume_from_checkpoint="auto", **options)).run().step == 4
        assert said in capsys.readouterr().err
        assert (out / "last" / "model.safetensors").read_bytes() == weights
    whole = tmp_path / "whole"
    for again in ("", "auto"):
        capsys.readouterr()
        Trainer(config(world, whole, total_epochs=1, resume_from_checkpoint=again)).run()
        said = "--total_epochs 1: the run stands after step 3 already, so nothing is trained; give more to go on"
        assert (said in capsys.readouterr().err) == bool(again)


FLOATS = [field.name for field in dataclasses.fields(TrainConfig) if field.type == "float"]


@pytest.mark.parametrize("name", FLOATS)
def test_a_number_that_is_not_finite_names_its_flag(name: str) -> None:
    for value in (math.inf, -math.inf, math.nan):
        with pytest.raises(ValueError, match=f"^--{name}: must be a finite number, got"):
            config(Path("w"), Path("o"), **{name: value})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"seed": 1 << 63}, "--seed: must be below 2⁶³"),
        ({"distributed_timeout": 1e12}, "--distributed_timeout: must be at most 31536000 seconds, a year, got"),
        ({"opd_temperature": 1e-300}, r"--opd_temperature: must lie in \[1.18e-38, 3.4e\+38\], the range of scores, got 1e-300"),
        ({"jsd_beta": 1.0, "divergence": "jsd"}, "--jsd_beta: must lie between 0 and 1, got 1.0"),
        ({"jsd_beta": 0.3}, "--jsd_beta 0.3: is a matter of --divergence jsd, and it is forward_kl"),
        ({"opd_objective": "policy_gradient"}, "--opd_objective policy_gradient: its mean is right for tokens of the student's own"),
        (
            {"opd_objective": "fixed_advantage", "rollout_temperature": 1.0, "support": "teacher"},
            "--opd_objective fixed_advantage: is the reverse divergence over all ids; leave --divergence, --support",
        ),
        ({"control_variate": False}, "--control_variate: is a matter of --opd_objective policy_gradient, and it is divergence"),
        ({"position_decay": 1.5}, r"--position_decay: must lie in \(0, 1\], got 1.5"),
        ({"end_weight": -1.0}, "--end_weight: must not be negative, got -1.0"),
        ({"length_guard": 0.5}, "--length_guard: below 1 it would leave rollouts out that are as long as the text, got 0.5"),
        ({"tail_bucket": True, "support": "full"}, "--tail_bucket: with --support full no id is left for it"),
        ({"rollout_temperature": 1e39}, "--rollout_temperature: must lie in"),
        ({"num_threads": 1 << 40}, "--num_threads: must be at most 4096 threads"),
    ],
)
def test_a_number_that_nothing_can_use_names_its_flag(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(Path("w"), Path("o"), **overrides)


def test_the_ends_of_the_ranges_are_usable(world: Path, tmp_path: Path) -> None:
    options = {"seed": (1 << 63) - 1, "distributed_timeout": 365 * 24 * 3600.0, "lora_rank": 2, "max_steps": 1}
    assert Trainer(config(world, tmp_path / "run", sharding="optimizer", **options)).run().step == 1
