"""A checkpoint that is not what was written is found before a run goes on from it, and a run that does not go on as it was says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from arkfast import files
from arkfast.records import InputError
from arkfast.testing import tiny_checkpoint
from arkfast.train.checkpoints.export_command import ExportConfig, export
from arkfast.train.checkpoints.run_folder import load_state
from arkfast.train.checkpoints.sums import Verification, checksums
from arkfast.train.checkpoints.tensors import damage
from arkfast.train.config import TrainConfig
from arkfast.train.trainer import Trainer


def config(world: Path, out: Path, **overrides: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "stage": "sft", "student_model": world / "student", "train_data": world / "train.jsonl", "output_dir": out, "max_steps": 4,
        "learning_rate": 1e-3, "dataloader_num_workers": 0, "model_dtype": "float32", "num_threads": 1, "device": "cpu", "gates": "off",
        "calibration_batches": 0, "asr_opd_max_new_tokens": 4, "save_freq": 1, "max_ckpt_to_keep": 9,
    }  # fmt: skip
    return TrainConfig(**{**values, **overrides})


def losses(out: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows}


def half_zero(path: Path) -> None:
    """As a power cut leaves a file whose size was written down and whose content was not."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def test_a_file_whose_second_half_is_zeros_is_found_and_the_checkpoint_before_it_used(world, tmp_path, halted, capsys):
    out = tmp_path / "run"
    halted(Trainer(config(world, out)), 3)
    newest = out / "checkpoints" / "global_step_3"
    half_zero(newest / "optimizer.safetensors")
    assert damage(newest) is None, "its size and its header are right"
    said = "optimizer.safetensors holds other bytes than were written"
    assert damage(newest, full=True) == said
    again = config(world, out, resume_from_checkpoint=str(newest))
    with pytest.raises(InputError, match=rf"global_step_3: damaged \({said}\); give an earlier one"):
        Trainer(again)
    trainer = Trainer(config(world, out, resume_from_checkpoint="auto"))
    assert trainer._state.step == 2
    trainer.run()
    assert f"global_step_3 is damaged ({said}); the one before it is used" in capsys.readouterr().err
    whole = tmp_path / "whole"
    Trainer(config(world, whole)).run()
    assert losses(out) == losses(whole)


def test_only_sizes_are_looked_at_where_that_is_asked_for(world, tmp_path, halted):
    out = tmp_path / "run"
    halted(Trainer(config(world, out)), 2)
    half_zero(out / "checkpoints" / "global_step_2" / "optimizer.safetensors")
    assert Trainer(config(world, out, resume_from_checkpoint="auto", verify_checkpoints="sizes"))._state.step == 2


def test_every_file_of_a_checkpoint_is_covered(world, tmp_path):
    out = tmp_path / "run"
    Trainer(config(world, out, max_steps=1)).run()
    folder = out / "checkpoints" / "global_step_1"
    assert damage(folder, full=True) is None
    names = {path.name for path in folder.iterdir()} - {"files.json", "trainer_state.json"}
    assert names == json.loads((folder / "files.json").read_text())["checksums"].keys()
    for name in sorted(names):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert damage(folder, full=True) is not None, name
        (folder / name).write_bytes(data)
    state = json.loads((folder / "trainer_state.json").read_text())
    (folder / "trainer_state.json").write_text(json.dumps({key: value for key, value in state.items() if key != "cursor"}))
    assert damage(folder) == "trainer_state.json does not say cursor"


def test_a_model_is_not_taken_out_of_a_damaged_checkpoint(world, tmp_path, capsys):
    out = tmp_path / "run"
    Trainer(config(world, out, max_steps=2)).run()
    half_zero(out / "checkpoints" / "global_step_2" / "model.safetensors")
    assert export(ExportConfig(checkpoint=out, output=tmp_path / "model")).name == "global_step_1"
    with pytest.raises(InputError, match=r"model\.safetensors holds other bytes than were written"):
        export(ExportConfig(checkpoint=out / "checkpoints" / "global_step_2", output=tmp_path / "another"))


def test_a_checksum_does_not_depend_on_how_a_file_is_cut_into_threads(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(bytes(range(256)) * 1000)
    (tmp_path / "empty").write_bytes(b"")
    monkeypatch.setattr("arkfast.train.checkpoints.sums.BLOCK", 1000)
    before = checksums(tmp_path, ["a", "empty"])
    monkeypatch.setattr("arkfast.train.checkpoints.sums._PIECE", 7)
    monkeypatch.setattr("arkfast.train.checkpoints.sums._THREADS", 1)
    assert checksums(tmp_path, ["a", "empty"]) == before
    assert before["a"] != before["empty"]
    data = bytearray((tmp_path / "a").read_bytes())
    data[:1000], data[1000:2000] = data[1000:2000], data[:1000]
    data[5] ^= 1
    (tmp_path / "a").write_bytes(data)
    assert checksums(tmp_path, ["a"])["a"] != before["a"]


def test_what_cannot_be_verified_is_not_used():
    assert Verification(lambda: None).damage() is None
    assert Verification(lambda: str(1 / 0)).damage() == "ZeroDivisionError: division by zero"


def test_files_and_folders_are_fsynced_before_a_checkpoint_has_its_name(world, tmp_path, monkeypatch):
    out, points = tmp_path / "run", list[tuple[Path, str]]()
    trainer = Trainer(config(world, out, max_steps=1))
    monkeypatch.setattr(files, "fault", lambda path, point: points.append((path, point)))
    trainer.run()
    target, new = out / "checkpoints" / "global_step_1", out / "checkpoints" / ".global_step_1.new"
    named = points.index((target, "commit"))
    synced = {path for path, point in points[:named] if point == "fsync"}
    assert {new, *(new / path.relative_to(target) for path in target.rglob("*"))} <= synced
    assert (out / "checkpoints", "fsync") in points[named:], "the name itself"


# The loss of before and of now.


def test_a_run_that_goes_on_as_it_was_says_nothing_of_its_loss(world, tmp_path, halted, capsys):
    out = tmp_path / "run"
    halted(Trainer(config(world, out)), 2)
    state = load_state(out / "checkpoints" / "global_step_2")
    assert (state.last_loss, state.last_cursor) == (losses(out)[2], 1)
    Trainer(config(world, out, resume_from_checkpoint="auto")).run()
    assert "had loss" not in capsys.readouterr().err


def test_a_loss_that_has_jumped_is_said(world, tmp_path, halted, capsys):
    out, student = tmp_path / "run", tmp_path / "student"
    tiny_checkpoint(student, seed=1)
    options: dict[str, Any] = {"student_model": student, "lora_rank": 8, "lora_alpha": 64.0, "learning_rate": 3e-2, "max_steps": 16}
    options["save_freq"] = 15
    halted(Trainer(config(world, out, **options)), 15)
    tiny_checkpoint(student, seed=5)
    Trainer(config(world, out, resume_from_checkpoint="auto", allow_changed=("student_model",), **options)).run()
    assert "warning: step 15 had loss " in capsys.readouterr().err


def test_a_clip_of_the_last_step_that_is_gone_is_no_bar(world, tmp_path, halted):
    rows = (world / "train.jsonl").read_text().splitlines(keepends=True)
    for path in world.glob("*.wav"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = tmp_path / "train.jsonl"
    manifest.write_text("".join(json.dumps({**json.loads(row), "duration": 0.5}) + "\n" for row in rows))
    options: dict[str, Any] = {"train_data": manifest, "shuffle_train": False}
    halted(Trainer(config(world, tmp_path / "run", **options)), 1)
    (tmp_path / "0.wav").unlink()
    assert Trainer(config(world, tmp_path / "run", resume_from_checkpoint="auto", **options)).run().step == 4


@pytest.mark.parametrize("changed", [False, True])
def test_a_step_that_is_taken_again_is_compared_with_what_the_log_says_of_it(world, tmp_path, halted, capsys, changed):
    out, options = tmp_path / "run", {"save_freq": 2, "max_steps": 6}
    halted(Trainer(config(world, out, **options)), 4)
    shutil.rmtree(out / "checkpoints" / "global_step_4")  # as if killed before that save was complete
    log = out / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    rows[2]["loss"] *= 1.5 if changed else 1.0
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    Trainer(config(world, out, resume_from_checkpoint="auto", **options)).run()
    assert ("warning: step 3 had loss " in capsys.readouterr().err) == changed
