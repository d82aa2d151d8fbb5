"""Flags of the loss of stage opd: the same on the command line and in a file of settings, and a run with them is resumed to the number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arkfast.command_line import parse
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav
from arkfast.train.config import TrainConfig
from arkfast.train.objective import guards_of
from arkfast.train.trainer import Trainer

TEXTS = ("one two", "three", "four five six", "")
SETTINGS: dict[str, dict[str, Any]] = {
    "tail": {"divergence": "jsd", "jsd_beta": 0.4, "support": "teacher", "tail_bucket": True, "empty_rollout": "reference",
             "loop_guard": True, "length_guard": 2.0, "rollouts_per_prompt": 2, "rollout_temperature": 1.0, "opd_temperature": 1.5},
    "sampled": {"opd_objective": "policy_gradient", "control_variate": False, "rollout_temperature": 1.0, "loop_guard": True},
    "full": {"divergence": "reverse_kl", "support": "full", "empty_rollout": "skip", "end_weight": 2.0, "position_decay": 0.9},
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of one vocabulary and four clips, one of which has no text."""
    root = tmp_path_factory.mktemp("world")
    tiny_checkpoint(root / "student", seed=1)
    tiny_checkpoint(root / "teacher", seed=2, hidden_size=64, num_attention_heads=4)
    rows = []
    for i, text in enumerate(TEXTS):
        write_wav(root / f"{i}.wav", synthetic_speech(0.5 + 0.13 * i, seed=i))
        rows.append({"audio": f"{i}.wav", "text": text, "id": f"clip{i}"})
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def words(world: Path, out: Path) -> list[str]:
    paths = {"student_model": "student", "teacher_model": "teacher", "train_data": "train.jsonl"}
    rest = {"output_dir": out, "per_device_train_batch_size": 2, "max_steps": 4, "learning_rate": 1e-3, "opd_top_k": 4, "seed": 3,
            "asr_opd_max_new_tokens": 8, "gates": "off", "dataloader_num_workers": 0, "model_dtype": "float32", "num_threads": 1,
            "device": "cpu", "save_freq": 2}  # fmt: skip
    named = {name: world / path for name, path in paths.items()}
    return [word for name, value in {**named, **rest}.items() for word in (f"--{name}", str(value))]


def read(*given: str) -> TrainConfig:
    return parse(TrainConfig, list(given), prog="arkfast train", description="")


def losses(out: Path) -> list[tuple[float, ...]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["grad_norm"], row["positions"]) for row in rows if "loss" in row]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_is_the_same_from_flags_and_from_a_file_and_is_resumed(
    world: Path, tmp_path: Path, halted: Any, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    settings = SETTINGS[name]
    (tmp_path / "settings.yaml").write_text("".join(f"{flag}: {json.dumps(value)}\n" for flag, value in settings.items()))
    flags = [word for flag, value in settings.items() for word in (f"--{flag}", str(value))]
    whole = read(*words(world, tmp_path / "whole"), *flags)
    assert whole == read(*words(world, tmp_path / "whole"), "--config", str(tmp_path / "settings.yaml"))
    assert {flag: getattr(whole, flag) for flag in settings} == settings

    Trainer(whole).run()
    part = [*words(world, tmp_path / "part"), *flags]
    halted(Trainer(read(*part)), 3)
    capsys.readouterr()
    Trainer(read(*part, "--resume_from_checkpoint", "auto")).run()
    assert "had loss" not in capsys.readouterr().err, "it is the same run"
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 4
    plain = read(*words(world, tmp_path / "plain"), "--max_steps", "1")
    Trainer(plain).run()
    assert losses(tmp_path / "plain")[0] != losses(tmp_path / "whole")[0], "the settings decide the loss"
    logged = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[0])
    assert set(guards_of(whole).counters) <= set(logged)
    assert (logged["generated_rows"], bool(guards_of(whole).counters)) == (2 * whole.rollouts_per_prompt, True)
    if name == "full":
        produced = logged["opd_terminal_rows"] + logged["opd_nonterminal_rows"]
        counted = produced - logged["guarded_empty_rows"]
        assert logged["local_valid_count_max"] == counted != logged["positions"], "tokens are counted, whatever their positions weigh"
