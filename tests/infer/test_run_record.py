"""The record of a transcription: what ran, on what, how fast; and that it takes no other file's place."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from stand_in import StandIn, make_recordings, manifest, run
from tiny_transcriptions import rows_of

from arkfast.infer.command import main


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_recordings(tmp_path_factory.mktemp("audio"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_record_says_what_ran(folder: Path, recordings: Path) -> None:
    manifest(recordings, 4, [2])
    (folder / "config.json").write_text("{}")
    assert run("out.jsonl", "--max_new_tokens", "99") == 1
    record = json.loads(Path("out.jsonl.run.json").read_text())
    assert (record["rows"], record["failed"], record["resumed"]) == (4, 1, 0)
    assert record["flags"] | {"max_new_tokens": 99, "output": "out.jsonl", "model_path": "model", "seed": 0} == record["flags"]
    assert record["model"]["file config.json"] == hashlib.blake2b(b"{}", digest_size=16).hexdigest()
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0] or record["versions"]["torch"] == torch.__version__
    assert len(record["reasons"]) == 1
    assert "bad0.wav" in record["reasons"][0]
    assert record["rtfx_end_to_end"] == pytest.approx(record["audio_seconds"] / record["wall_seconds"])
    assert run("out.jsonl", "--max_new_tokens", "99", "--run_record", "again.json") == 1
    again = json.loads(Path("again.json").read_text())
    assert (again["resumed"], again["audio_seconds"]) == (4, 0)
    assert again["resumed_seconds"] == pytest.approx(record["audio_seconds"]), "what another run did is no part of this one's speed"


def test_a_record_of_several_inputs_names_them_and_takes_the_place_of_none(folder: Path, recordings: Path) -> None:
    manifest(recordings, 2, [])
    inputs = ["in.jsonl", str(recordings / "3.wav"), str(recordings / "4.wav")]
    command = [*inputs, "--output", "out.jsonl", "--model_path", "model"]
    assert main(command, load=lambda *_: StandIn(Path(), Path("log"))) == 0  # type: ignore[return-value]
    flags = json.loads(Path("out.jsonl.run.json").read_text())["flags"]
    assert [flags["input"], *flags["more_inputs"]] == inputs
    before = (recordings / "4.wav").read_bytes()
    assert main([*command, "--run_record", inputs[2]]) == 2
    assert (recordings / "4.wav").read_bytes() == before


@pytest.mark.parametrize("path", ["in.jsonl", "out.jsonl"])
def test_a_record_takes_no_other_files_place(folder: Path, recordings: Path, capsys: pytest.CaptureFixture[str], path: str) -> None:
    manifest(recordings, 2, [])
    before = Path("in.jsonl").read_bytes()
    assert run("out.jsonl", "--run_record", path) == 2
    assert f"{path}: is an input or the output too" in capsys.readouterr().err
    assert (Path("in.jsonl").read_bytes(), Path("out.jsonl").exists()) == (before, False)


def test_a_record_that_cannot_be_written_costs_no_output(folder: Path, recordings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest(recordings, 2, [])
    Path("file").write_text("")
    assert run("out.jsonl", "--run_record", "file/record.json") == 0
    assert len(rows_of("out.jsonl")) == 2
    assert "no record of the run, whose output is complete: file/record.json: cannot be written" in capsys.readouterr().err


def test_ops_and_weights_stand_in_the_record_of_a_real_run(folder: Path, recordings: Path, model: Path) -> None:
    manifest(recordings, 2, [])
    assert main(["in.jsonl", "--output", "out.jsonl", "--model_path", str(model), "--device", "cpu", "--max_new_tokens", "4"]) == 0
    record = json.loads(Path("out.jsonl.run.json").read_text())
    assert len(record["model"]["file weights"]) == 32
    assert record["ops"]
    assert all(backends == ["torch"] for backends in record["ops"].values())
    assert record["rtfx"] == pytest.approx(record["audio_seconds"] / record["processing_seconds"])
