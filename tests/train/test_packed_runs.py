"""Whole runs whose student learns from packed rows: the losses of padded ones, in one process and sharded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arkfast.models.packed import packs
from arkfast.testing import tiny_checkpoint
from arkfast.train.config import TrainConfig
from arkfast.train.trainer import Trainer


def config(world: Path, out: Path, **options: Any) -> TrainConfig:
    return TrainConfig(**{
        "stage": "opd", "student_model": world / "student", "teacher_model": world / "teacher", "train_data": world / "train.jsonl",
        "output_dir": out, "learning_rate": 1e-3, "asr_opd_max_new_tokens": 8, "per_device_train_batch_size": 2,
        "rollouts_per_prompt": 2, "rollout_temperature": 1.0,
        "max_steps": 3, "gates": "off", "dataloader_num_workers": 0, "seed": 3, "num_threads": 1, "device": "cpu",
        "calibration_batches": 0, **options,
    })  # fmt: skip


def losses(out: Path) -> list[tuple[float, float]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["loss"], row["grad_norm"]) for row in rows if "loss" in row]


@pytest.mark.parametrize("options", [{}, {"sharding": "full", "activation_checkpointing": True}], ids=["whole", "sharded"])
def test_a_run_with_packed_rows_has_the_losses_of_padded_ones(world: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    if not (world / "teacher").is_dir():
        tiny_checkpoint(world / "teacher", seed=2)
    found = {}
    for packed in ("auto", "on"):
        trainer = Trainer(config(world, tmp_path / packed, packed_decoder=packed, **options))
        assert packs(trainer.learner.model) == (packed == "on"), "on a CPU rows are padded unless they are asked to be packed"
        trainer.run()
        found[packed] = losses(tmp_path / packed)
    assert len(found["auto"]) == 3
    assert found["auto"][0][0] > 0.01
    for got, want in zip(found["on"], found["auto"], strict=True):
        assert got == pytest.approx(want, rel=2e-5)


def test_an_attention_without_packed_rows_is_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--packed_decoder on: rows are packed with --student_attn_implementation sdpa, not eager"):
        config(world, tmp_path, packed_decoder="on", student_attn_implementation="eager")
