"""Transcriptions that break off or never begin: an earlier output stays, the rows so far are kept, and what was wrong is said."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_transcriptions import rows_of

from arkfast import Transcriber
from arkfast.engine import Engine
from arkfast.infer.command import main
from arkfast.infer.result import Result
from arkfast.records import InputError, Utterance


def test_an_existing_output_survives_a_crash(
    transcribe: Callable[..., tuple[int, Path]], audio: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"audio": str(audio / "0.wav")}] * 3
    code, output = transcribe(lines)
    assert code == 0
    before = output.read_bytes()
    written = 0
    original = Result.row

    def crash(self: Result) -> dict[str, Any]:
        nonlocal written
        written += 1
        if written == 3:
            raise OSError("disk on fire")
        return original(self)

    monkeypatch.setattr(Result, "row", crash)
    with pytest.raises(OSError, match="disk on fire"):
        transcribe(lines)
    assert output.read_bytes() == before
    assert len(rows_of(output.with_name("out.jsonl.partial"))) == 2
    assert "stopped after 2 of 3 rows" in capsys.readouterr().err


def test_an_interrupt_keeps_the_old_output_and_the_rows_so_far(
    transcribe: Callable[..., tuple[int, Path]], audio: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "out.jsonl").write_text("{}\n")
    monkeypatch.setattr(Transcriber, "results", interrupted)
    code, output = transcribe([{"audio": str(audio / "0.wav")}] * 2)
    assert code == 130
    assert output.read_text() == "{}\n"
    assert [row["pred_text"] for row in rows_of(tmp_path / "out.jsonl.partial")] == ["first"]


@pytest.mark.parametrize("form", ["{}", "--input={}"])
def test_the_command_to_go_on_with_has_no_signature_even_where_an_address_has_blanks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    def interrupted(*_: object) -> Transcriber:
        raise KeyboardInterrupt

    given = form.format("https://127.0.0.1:9/my talk.wav?sig=s3cr3t")
    assert main([given, "--output", str(tmp_path / "out.jsonl")], load=interrupted) == 130
    said = capsys.readouterr().err
    assert "s3cr3t" not in said
    assert form.format("https://127.0.0.1:9/my talk.wav?…") in said


def interrupted(_: Transcriber, items: Iterator[Utterance], **_options: object) -> Iterator[Result]:
    yield Result(utterance=next(items), text_raw="first", finish_reason="stop")
    raise KeyboardInterrupt


def test_a_lost_device_keeps_the_rows_so_far_and_is_no_failed_row(
    transcribe: Callable[..., tuple[int, Path]], audio: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, done = Engine.step, []

    def losing(self: Engine) -> Any:
        if done:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        done.extend(found := step(self))
        return found

    monkeypatch.setattr(Engine, "step", losing)
    code, output = transcribe([{"audio": str(audio / "0.wav")}] * 3, "--batch_size", "1")
    assert code == 2
    assert not output.exists()
    assert len(rows_of(output.with_name("out.jsonl.partial"))) == 1
    said = capsys.readouterr().err
    assert "stopped after 1 of 3 rows" in said
    assert "error: the device cpu failed and cannot go on in this process; run again (CUDA error: an illegal memory access" in said


def test_a_full_disk_is_no_failed_row(
    transcribe: Callable[..., tuple[int, Path]], audio: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, output = transcribe([{"audio": str(audio / "0.wav")}])
    assert code == 2
    assert not output.exists()
    assert "out.jsonl: cannot be written any further (No space left on device); the 1 rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model_path", "/nowhere/model"], "/nowhere/model"),
        (["--max_new_tokens", "100000000"], "max_new_tokens 100000000 take 100000404 positions, the model has 4096"),
        (["--max_audio_seconds", "1e300"], "max_audio_seconds 1e+300 and max_new_tokens 24 take "),
        (["--device", "cuda:99"], "device cuda:99: torch sees"),
        (["--device", "toaster"], "device toaster: not a device that torch knows"),
        (["--input", "/nowhere/in.jsonl"], "/nowhere/in.jsonl: cannot be read"),
    ],
)
def test_unusable_arguments_end_the_run_before_the_output_is_touched(
    transcribe: Callable[..., tuple[int, Path]],
    audio: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    (tmp_path / "out.jsonl").write_text("{}\n")
    code, output = transcribe([{"audio": str(audio / "0.wav")}], *flags)
    assert code == 2
    assert output.read_text() == "{}\n"
    assert not list(tmp_path.glob("*.partial*"))
    assert message in capsys.readouterr().err


def test_the_input_is_never_the_output(transcribe: Callable[..., tuple[int, Path]], audio: Path, tmp_path: Path) -> None:
    code, _ = transcribe([{"audio": str(audio / "0.wav")}], "--output", str(tmp_path / "in.jsonl"))
    assert code == 2
    assert len(rows_of(tmp_path / "in.jsonl")) == 1


@pytest.mark.parametrize("flags", [["--batch_size", "0"], ["--max_new_tokens", "-1"], ["--max_audio_seconds", "nan"], ["--beam", "3"]])
def test_wrong_flags_are_refused(transcribe: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        transcribe([{}], *flags)
    assert caught.value.code == 2
    assert flags[0].lstrip("-") in capsys.readouterr().err


def test_arguments_are_checked_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        Transcriber("/nowhere", batch_size=0)
