"""One run writes into a folder; what stands in the way there is said in one sentence, before anything is read or loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from arkfast import cli
from arkfast.records import InputError
from arkfast.train.config import TrainConfig
from arkfast.train.trainer import Trainer

HOLD = """
import sys
from pathlib import Path
from arkfast.files.lock import Lock
with Lock(Path(sys.argv[1]), target=Path("run")):
    print("held", flush=True)
    sys.stdin.read()
"""


def config(world: Path, out: Path, **overrides: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "stage": "sft", "student_model": world / "student", "train_data": world / "train.jsonl", "output_dir": out, "max_steps": 2,
        "dataloader_num_workers": 0, "model_dtype": "float32", "num_threads": 1, "device": "cpu", "gates": "off",
        "calibration_batches": 0, "asr_opd_max_new_tokens": 4,
    }  # fmt: skip
    return TrainConfig(**{**values, **overrides})


@contextmanager
def another_run(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes into the folder until the block ends."""
    folder.mkdir(exist_ok=True)
    words = [sys.executable, "-c", HOLD, str(folder / ".lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_the_second_run_leaves_with_one_line_before_it_reads_anything(world, tmp_path, monkeypatch, capfd):
    out = tmp_path / "run"
    monkeypatch.setattr("arkfast.train.trainer.read_rows", lambda *_: pytest.fail("rows were read"))
    words = ["--stage", "sft", "--student_model", world / "student", "--train_data", world / "train.jsonl", "--output_dir", out]
    with another_run(out) as process:
        try:
            code = cli.main(["train", *map(str, words), "--device", "cpu", "--resume_from_checkpoint", "auto"])
        except SystemExit as error:
            code = int(error.code or 0)
        (said,) = capfd.readouterr().err.splitlines()
    assert code == 2
    assert said.startswith(f"arkfast train: error: --output_dir {out}: is being written by another run, process {process.pid} on ")
    assert said.endswith("let it end, or give another --output_dir")


def test_a_folder_reached_through_a_link_is_the_same_folder(world, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with another_run(tmp_path / "run"), pytest.raises(InputError, match="is being written by another run"):
        Trainer(config(world, tmp_path / "link"))


def test_a_killed_run_leaves_no_lock_in_the_way_and_a_finished_one_none_at_all(world, tmp_path):
    out = tmp_path / "run"
    with another_run(out) as process:
        process.kill()
        process.wait()
    assert (out / ".lock").exists()
    Trainer(config(world, out)).run()
    assert not (out / ".lock").exists()


def test_a_run_that_cannot_begin_leaves_nothing_and_the_next_one_takes_over(world, tmp_path):
    out = tmp_path / "runs" / "run"
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"bad\.jsonl:1: "):
        Trainer(config(world, out, train_data=tmp_path / "bad.jsonl"))
    assert not out.exists()
    given_up = Trainer(config(world, out))
    assert Trainer(config(world, out, resume_from_checkpoint="auto")).run().step == 2, "of this process, which gave the first one up"
    assert given_up._state.step == 0


def test_looking_at_a_start_takes_no_lock(world, tmp_path):
    out = tmp_path / "run"
    with another_run(out):
        Trainer(config(world, out, calibrate_only=True, calibration_batches=1)).run()
    assert os.listdir(out) == [".lock"]


# What else stands in the way.


@pytest.mark.parametrize("place", ["run", "above/run"])
def test_a_file_in_the_folders_place_is_named(world, tmp_path, place, monkeypatch):
    monkeypatch.setattr("arkfast.train.trainer.load_models", None)
    (tmp_path / place.partition("/")[0]).write_text("mine")
    with pytest.raises(InputError, match=r"--output_dir .*run: .*is a file|--output_dir .*cannot be written"):
        Trainer(config(world, tmp_path / place))


def test_a_folder_that_cannot_be_written_is_named_before_a_model_loads(world, monkeypatch):
    monkeypatch.setattr("arkfast.train.trainer.load_models", None)
    with pytest.raises(InputError, match=r"/proc/run.* cannot be"):
        Trainer(config(world, Path("/proc/run")))


@pytest.mark.parametrize("harm", ['{"identity": 3}', "\0" * 40, None])
def test_a_damaged_description_of_the_run_is_moved_aside_and_said(world, tmp_path, harm, halted, capsys):
    out = tmp_path / "run"
    halted(Trainer(config(world, out, save_freq=1)), 1)
    (out / "run.json").unlink()
    if harm is not None:
        (out / "run.json").write_text(harm)
    with pytest.raises(InputError, match=r"holds a run whose run\.json is (damaged|missing); give --resume_from_checkpoint auto"):
        Trainer(config(world, out))
    with pytest.raises(InputError, match=r"belongs to another run \(seed 1 there, 7 here\)"):
        Trainer(config(world, out, resume_from_checkpoint="auto", seed=7))
    assert Trainer(config(world, out, resume_from_checkpoint="auto")).run().step == 2
    assert "which run this is, its checkpoints say" in capsys.readouterr().err
    assert json.loads((out / "run.json").read_text())["identity"]["seed"] == 1
    aside = out / "run.json.damaged-1"
    assert (aside.read_text() if aside.exists() else None) == harm


@pytest.mark.parametrize("harm", [b'{"step": "x"}\n', b"\0\xff\xfe\n"])
def test_damaged_lines_of_the_log_are_moved_aside_and_said(world, tmp_path, harm, halted, capsys):
    out = tmp_path / "run"
    halted(Trainer(config(world, out, save_freq=1, max_steps=3)), 2)
    log = out / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([lines[0], harm, *lines[1:]]))
    was = log.read_bytes()
    assert Trainer(config(world, out, max_steps=3, resume_from_checkpoint="auto")).run().step == 3
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3]
    assert (out / "metrics.jsonl.damaged-1").read_bytes() == was
    assert "a line is damaged, first at line 2; the file is moved to metrics.jsonl.damaged-1" in capsys.readouterr().err
