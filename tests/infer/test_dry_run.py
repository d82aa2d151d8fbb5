"""``arkfast transcribe --dry_run``: what it counts, measures and forecasts, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from arkfast.infer.command import main
from arkfast.testing import write_wav

soundfile = pytest.importorskip("soundfile")


def no_model(*_: object) -> NoReturn:
    raise AssertionError("a dry run loads no model")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).normal(0, 0.1, 40 * 16000).astype(np.float32)
    write_wav(tmp_path / "a.wav", noise[: 16000 * 2])
    write_wav(tmp_path / "long.wav", noise)
    soundfile.write(tmp_path / "b.flac", noise[: 16000 * 3], 16000)
    (tmp_path / "bad.wav").write_text("no audio")
    return tmp_path


def manifest(*rows: dict[str, Any] | str) -> None:
    Path("in.jsonl").write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


GOOD = [{"id": "a", "audio": "a.wav"}, {"id": "cut", "audio": "b.flac", "begin_time": 0.5, "end_time": 2}, {"id": "l", "audio": "long.wav"}]


def found(capsys: pytest.CaptureFixture[str], *flags: str, code: int = 0) -> dict[str, Any]:
    assert main(["in.jsonl", "--dry_run", "--run_record", "-", *flags], load=no_model) == code
    plan: dict[str, Any] = json.loads(capsys.readouterr().out)
    return plan


def test_hours_lengths_and_codecs_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest(*GOOD)
    plan = found(capsys)
    assert plan["rows"] == 3
    assert plan["bad"] == 0
    assert plan["audio_seconds"] == pytest.approx(2 + 1.5 + 40)
    assert (plan["longest_id"], plan["longest_seconds"], plan["over_limit"]) == ("l", pytest.approx(40), 1)
    assert {name: codec["rows"] for name, codec in plan["codecs"].items()} == {"wav": 2, "flac": 1}
    assert plan["codecs"]["flac"]["hours"] == pytest.approx(1.5 / 3600)
    assert all(codec["rtfx_of_a_core"] > 0 for codec in plan["codecs"].values())


def test_without_a_rate_no_time_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest(*GOOD)
    plan = found(capsys)
    assert plan["gpu_hours_per_1000_hours"] is plan["wall_seconds"] is plan["codecs"]["wav"]["cores"] is None
    assert main(["in.jsonl", "--dry_run"], load=no_model) == 0
    shown = capsys.readouterr().out
    assert "not known without a rate; --assume_rtfx gives one" in shown
    assert "40 s (l)" in shown


def test_what_follows_from_a_rate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest(*GOOD)
    plan = found(capsys, "--assume_rtfx", "500")
    assert plan["gpu_hours_per_1000_hours"] == 2
    assert plan["wall_seconds"] == pytest.approx(43.5 / 500)
    wav = plan["codecs"]["wav"]
    assert wav["cores"] == pytest.approx(500 / wav["rtfx_of_a_core"])


def test_memory_and_disk_grow_with_clips_and_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest(*GOOD)
    eight = found(capsys, "--batch_size", "8")
    assert eight["feature_bytes"] == 64 * 30 * 100 * 128 * 4, "eight clips for each slot, of 30 s at most"
    assert found(capsys, "--batch_size", "4")["feature_bytes"] * 2 == eight["feature_bytes"]
    samples = found(capsys, "--batch_size", "8", "--features", "device")
    assert samples["feature_bytes"] == 64 * 30 * 16_000 * 4, "samples wait where the device makes features of them"
    assert eight["weights_bytes"] is None
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(b"x" * 1000)
    assert found(capsys, "--model_path", "model")["weights_bytes"] == 1000
    manifest(*({"id": str(i), "audio": "a.wav"} for i in range(30)))
    assert found(capsys)["disk_bytes"] == 2 * (30 * 500 + 60 * 40)


def test_bad_rows_are_counted_with_their_first_three_reasons(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    past = {"id": "past", "audio": "a.wav", "begin_time": 5}
    manifest(*GOOD, "no JSON", {"id": "none", "audio": "none.wav"}, {"id": "bad", "audio": "bad.wav"}, past)
    plan = found(capsys, code=1)
    assert (plan["rows"], plan["bad"], len(plan["reasons"])) == (7, 4, 3)
    assert plan["audio_seconds"] == pytest.approx(43.5)
    assert "in.jsonl:4" in plan["reasons"][0]
    assert "none.wav" in plan["reasons"][1]
    assert "bad.wav" in plan["reasons"][2]
    assert found(capsys, "--allow_failures")["bad"] == 4
    manifest(*GOOD, past)
    assert "past the recording's end" in found(capsys, code=1)["reasons"][0]


def test_nothing_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest(*GOOD)
    before = sorted(folder.rglob("*"))
    assert main(["in.jsonl", "--dry_run", "--output", "new/out.jsonl", "--assume_rtfx", "10"], load=no_model) == 0
    assert sorted(folder.rglob("*")) == before
    capsys.readouterr()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--dry_run", "--run_record", "record.json"], "writes no file"),
        (["--dry_run", "--assume_rtfx", "0"], "above 0"),
        (["--dry_run", "--shard", "1/2"], "the whole input"),
        (["--output", "out.jsonl", "--assume_rtfx", "10"], "needs --dry_run"),
    ],
)
def test_flags_that_do_not_go_together(folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], says: str) -> None:
    manifest(*GOOD)
    try:
        code = main(["in.jsonl", *flags], load=no_model)
    except SystemExit as end:
        code = int(str(end.code))
    assert code == 2
    assert says in capsys.readouterr().err
