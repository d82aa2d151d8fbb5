"""Every door on a disk that is full from some point on: what was there stays, nothing unfinished is left, one line says why."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from file_writers import room_for

from arkfast import cli, files
from arkfast.infer.result import Result
from arkfast.infer.transcriber import Transcriber
from arkfast.models import ArkasrProcessor, load_model
from arkfast.records import InputError
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav
from arkfast.train.checkpoints.export import write_model
from arkfast.train.checkpoints.run_folder import RunFolder, TrainerState, checkpoints
from arkfast.train.checkpoints.saver import Saver
from arkfast.train.checkpoints.tensors import damage
from arkfast.train.config import TrainConfig
from arkfast.train.parallel import Parallel

FULL = "No space left on device"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint, a recording, and a manifest of it."""
    root = tmp_path_factory.mktemp("world")
    tiny_checkpoint(root / "model", seed=1)
    write_wav(root / "a.wav", synthetic_speech(0.5, seed=1))
    rows = [{"id": "a", "audio": str(root / "a.wav"), "text": "one two", "language": "en", "pred_text": "one"}]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def temporaries(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*") if re.fullmatch(r"\..+\.(new|old)", path.name)]


def attempts(disk: Any, capsys: pytest.CaptureFixture[str], words: list[object], check: Callable[[], None]) -> int:
    """Run a command on a disk that is full from the first point on, from the second …; how often that was."""
    codes: list[int] = []
    for _ in disk.at_every_point(lambda: codes.append(cli.main([str(word) for word in words]))):
        said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert len(said) == 1, said
        assert FULL in said[0]
        assert codes[-1] == 2
        check()
    assert codes[-1] == 0, capsys.readouterr().err
    return len(codes) - 1


def test_a_manifest_scan(world, tmp_path, disk, capsys, snapshot):
    output, rejects = tmp_path / "clean.jsonl", tmp_path / "rejects.jsonl"
    output.write_text("old\n")
    rejects.write_text("old\n")
    was = snapshot(tmp_path)

    def check() -> None:
        assert snapshot(tmp_path) == was

    words = ["manifest", "scan", "--input", world / "rows.jsonl", "--output", output, "--rejects", rejects]
    words += ["--cache", world / "durations.sqlite3"]  # SQLite writes that by its own rules
    assert attempts(disk, capsys, words, check) == 8
    assert json.loads(output.read_text())["id"] == "a"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean.jsonl", "rejects.jsonl"]


def test_transcripts(world, tmp_path, disk, capsys, monkeypatch):
    output = tmp_path / "out.jsonl"
    output.write_text("old\n")
    monkeypatch.setattr(
        Transcriber,
        "results",
        lambda self, items, **_: (i if isinstance(i, Result) else Result(utterance=i, text_raw="x", finish_reason="stop") for i in items),
    )
    # A record that cannot be written is no error, since the output is complete then: tests/infer/test_run_record.py.
    monkeypatch.setattr("arkfast.infer.command.write_record", lambda *_, **__: None)
    rows_left = []

    def check() -> None:
        assert output.read_text() == "old\n"
        assert temporaries(tmp_path) == []
        rows_left.append((tmp_path / "out.jsonl.partial").exists())

    assert attempts(disk, capsys, ["transcribe", "--input", world / "rows.jsonl", "--output", output, "--model_path", world / "model"],
                    check) >= 5  # fmt: skip
    assert rows_left[0] is False, "no row, no file of rows"
    assert rows_left[-1] is True, "rows are the user's"
    assert json.loads(output.read_text())["pred_text"] == "x"


def test_an_evaluation(world, tmp_path, disk, capsys):
    names = ("scored.jsonl", "summary.json", "table.md", "page.html")
    for name in names:
        (tmp_path / name).write_text("old\n")
    changed: list[list[str]] = []

    def check() -> None:
        changed.append([name for name in names if (tmp_path / name).read_text() != "old\n"])
        assert temporaries(tmp_path) == []
        for name in changed[-1]:
            (tmp_path / name).write_text("old\n")

    flags = [word for name, flag in zip(names, ("output", "summary", "markdown", "html"), strict=True)
             for word in (f"--{flag}", tmp_path / name)]  # fmt: skip
    assert attempts(disk, capsys, ["evaluate", "--input", world / "rows.jsonl", *flags], check) >= 16
    assert all(found == list(names[: len(found)]) for found in changed), "one after the other, each whole"
    assert {len(found) for found in changed} == {0, 1, 2, 3}
    assert "</html>" in (tmp_path / "page.html").read_text()


def test_the_report_of_a_run(tmp_path, disk, capsys, snapshot):
    (tmp_path / "run.json").write_text(json.dumps({"identity": {}, "config": {"stage": "sft"}}))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "stage": "sft", "loss": 1.0, "time_per_step": 1.0, "lr": 1e-5}) + "\n")
    (tmp_path / "report.html").write_text("old")
    was = snapshot(tmp_path)

    def check() -> None:
        assert snapshot(tmp_path) == was

    assert attempts(disk, capsys, ["report", tmp_path], check) == 5
    assert "</html>" in (tmp_path / "report.html").read_text()


def test_the_quickstarts_report(tmp_path, disk, snapshot):
    pytest.importorskip("matplotlib", reason="the picture is drawn by matplotlib")
    from arkfast.quickstart.report import Report, write_report

    for name in ("table.txt", "picture.png", "report.html"):
        (tmp_path / name).write_text("old")
    was, errors = snapshot(tmp_path), []

    def attempt() -> None:
        try:
            write_report(tmp_path, Report(rows=()))
        except InputError as error:
            errors.append(str(error))

    for _ in disk.at_every_point(attempt):
        assert snapshot(tmp_path) == was
    assert len(errors) == 10
    assert all(FULL in error for error in errors)
    assert all(path.read_bytes() != b"old" for path in tmp_path.iterdir())


# Checkpoints.

TENSORS = {"master/w": torch.arange(6.0).reshape(2, 3)}


def state(step: int) -> TrainerState:
    return TrainerState(step=step, cursor=step, best_wer=5.0, best_step=step, skipped=0)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("step", [1, 2])
def test_a_checkpoint(world, tmp_path, disk, snapshot, background, step):
    """Saved anew at its own step, and at the next one, when the first is to go."""
    config = TrainConfig(stage="sft", student_model=Path("s"), train_data=Path("t"), output_dir=tmp_path, max_ckpt_to_keep=1)
    folder, model = RunFolder(config), load_model(world / "model")
    saver = Saver(folder, Parallel("cpu", environment={}), sharded=False, background=background)

    def export(into: Path) -> None:
        write_model(into, model, model.state_dict(), ArkasrProcessor.from_pretrained(world / "model"))

    saver.save(state(1), export, TENSORS)
    saver.wait()
    was, errors = snapshot(tmp_path), []

    def attempt() -> None:
        try:
            saver.save(state(step), export, TENSORS)
            saver.wait()
        except InputError as error:
            errors.append(str(error))

    for after in disk.at_every_point(attempt):
        assert snapshot(tmp_path) == was, after
    assert len(errors) > 10, "each file of the checkpoint, its folders, and its name"
    expected = rf".*/global_step_{step}: cannot be written \({FULL}\); make room or give another path, and run again"
    assert all(re.fullmatch(expected, error) for error in errors), errors
    assert list(checkpoints(tmp_path)) == [step]
    assert damage(tmp_path / "checkpoints" / f"global_step_{step}") is None


@pytest.mark.parametrize("background", [False, True])
def test_shards_that_do_not_fit(tmp_path, snapshot, background):
    """As several ranks write them, here by one: ``torch.distributed.checkpoint`` meets the full disk."""
    parallel = Parallel("cpu", environment={})
    parallel.open()
    try:
        folder = RunFolder(TrainConfig(stage="sft", student_model=Path("s"), train_data=Path("t"), output_dir=tmp_path))
        saver = Saver(folder, parallel, sharded=True, background=background)

        def export(into: Path) -> None:
            (into / "model").write_text("new")

        saver.save(state(1), export, TENSORS)
        saver.wait()
        was = snapshot(tmp_path)

        def too_much() -> None:
            saver.save(state(2), export, {"master/w": torch.zeros(100_000)})
            saver.wait()

        with room_for(10_000), pytest.raises(BaseException, match="File too large") as caught:
            too_much()
        assert isinstance(caught.value, InputError), caught.value
        assert str(caught.value).startswith(f"{tmp_path}/checkpoints/global_step_2: cannot be written (File too large); make room")
        assert snapshot(tmp_path) == was
        saver.save(state(2), export, TENSORS)
        saver.close()
        assert sorted(checkpoints(tmp_path)) == [1, 2]
    finally:
        parallel.close()


def test_what_is_amended_and_the_models_beside_the_checkpoints(tmp_path, disk, snapshot):
    config = TrainConfig(stage="sft", student_model=Path("s"), train_data=Path("t"), output_dir=tmp_path)
    folder = RunFolder(config)
    saver = Saver(folder, Parallel("cpu", environment={}), sharded=False, background=False)

    def export(into: Path) -> None:
        (into / "model").write_text("new")

    saver.save(state(1), export, TENSORS)
    saver.best(state(1), export)
    saver.export("last", export)
    was, errors = snapshot(tmp_path), []
    for write in (
        lambda: saver.amend(replace(state(1), best_wer=4.0)),
        lambda: saver.best(replace(state(1), best_wer=4.0), export),
        lambda: saver.export("last", export),
    ):

        def attempt(write: Callable[[], None] = write) -> None:
            try:
                write()
            except InputError as error:
                errors.append(str(error))

        for _ in disk.at_every_point(attempt):
            assert snapshot(tmp_path) == was
        was = snapshot(tmp_path)
    assert len(errors) >= 14
    assert all(FULL in error for error in errors)


def test_an_export(world, tmp_path, disk, capsys, snapshot):
    words = ["train", "--stage", "sft", "--student_model", world / "model", "--train_data", world / "rows.jsonl", "--output_dir",
             tmp_path / "run", "--max_steps", 1, "--dataloader_num_workers", 0, "--num_threads", 1, "--device", "cpu"]  # fmt: skip
    assert cli.main([str(word) for word in words]) == 0
    capsys.readouterr()
    (tmp_path / "out").mkdir()
    was = snapshot(tmp_path)

    def check() -> None:
        assert snapshot(tmp_path) == was

    assert attempts(disk, capsys, ["export", "--checkpoint", tmp_path / "run", "--output", tmp_path / "out"], check) >= 8
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_run_that_meets_a_full_disk_ends_with_one_line_and_goes_on_later(world, tmp_path, monkeypatch, capsys):
    words = ["train", "--stage", "sft", "--student_model", world / "model", "--train_data", world / "rows.jsonl", "--output_dir", tmp_path,
             "--max_steps", 4, "--save_freq", 1, "--dataloader_num_workers", 0, "--num_threads", 1, "--device", "cpu"]  # fmt: skip

    def full_at_the_third(path: Path, point: str) -> None:
        if path.name in ("global_step_3", ".global_step_3.new") and point == "fsync":
            raise OSError(errno.ENOSPC, FULL)

    with monkeypatch.context() as patch:
        patch.setattr(files, "fault", full_at_the_third)
        assert cli.main([str(word) for word in words]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(said) == 1
    assert re.fullmatch(rf"arkfast train: error: .*global_step_3: cannot be written \({FULL}\); make room .*", said[0])
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["global_step_1", "global_step_2"]
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert cli.main([str(word) for word in (*words, "--resume_from_checkpoint", "auto")]) == 0
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    assert (tmp_path / "last" / "model.safetensors").is_file()


def test_the_log_is_on_disk_before_the_checkpoint_and_a_full_disk_is_named(world, tmp_path, disk, capsys, monkeypatch):
    words = ["train", "--stage", "sft", "--student_model", world / "model", "--train_data", world / "rows.jsonl", "--output_dir", tmp_path,
             "--max_steps", 2, "--save_freq", 1, "--dataloader_num_workers", 0, "--num_threads", 1, "--device", "cpu"]  # fmt: skip
    disk.fill(None)
    assert cli.main([str(word) for word in words]) == 0
    order = [name for point, name in disk.points if (point, name) == ("fsync", "metrics.jsonl") or (point == "commit" and "step" in name)]
    assert order == ["metrics.jsonl", "global_step_1", "metrics.jsonl", "global_step_2", "metrics.jsonl"]
    capsys.readouterr()

    def full(path: Path, point: str) -> None:
        if path.name == "metrics.jsonl" and point == "write":
            raise OSError(errno.ENOSPC, FULL)

    monkeypatch.setattr(files, "fault", full)
    assert cli.main([str(word) for word in (*words, "--max_steps", 3, "--resume_from_checkpoint", "auto")]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(said) == 1
    assert re.search(rf"metrics\.jsonl: cannot be written \({FULL}\)", said[0])
