"""Commands whose standard output is closed, is full, or has another encoding: no traceback, and the exit code is that of the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from arkfast.cli import COMMANDS

ROWS = [
    {"id": "1", "text": "naïve 你好", "pred_text": "naïve 你好", "language": "zh", "preset": "测试→"},
    {"id": "2", "text": "a b", "pred_text": "a c", "language": "en", "preset": "half \ud800"},
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path / "rows.jsonl"


def run(*words: object, out: int | str = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The command; ``out`` is its standard output: a descriptor, or "unread" or "closed"."""
    command = [sys.executable, "-m", "arkfast", *map(str, words)]
    if out == "closed":
        command = ["bash", "-c", 'exec "$@" >&-', "bash", *command]
    if isinstance(out, str):
        read, write = os.pipe()
        os.close(read)
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=write if out == "unread" else subprocess.PIPE if isinstance(out, str) else out,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
            timeout=120,
        )
    finally:
        if isinstance(out, str):
            os.close(write)


def nothing_wrong(done: subprocess.CompletedProcess[bytes]) -> bool:
    return b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_what_an_encoding_lacks_is_escaped(rows: Path, encoding: str) -> None:
    done = run("evaluate", "--input", rows, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0
    assert nothing_wrong(done)
    assert b"half \\ud800" in done.stdout
    assert ("测试→" if encoding == "utf-8" else "\\u6d4b\\u8bd5\\u2192").encode() in done.stdout


@pytest.mark.parametrize("out", ["unread", "closed"])
def test_finished_work_keeps_its_exit_code_when_nobody_reads_what_is_said(rows: Path, tmp_path: Path, out: str) -> None:
    for flags, code in (([], 0), (["--input", tmp_path / "gone.jsonl"], 2)):
        done = run("evaluate", "--input", rows, "--summary", tmp_path / "summary.json", *flags, out=out)
        assert done.returncode == code
        assert nothing_wrong(done)
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["utterances"] == 2


def test_a_full_disk_behind_standard_output_is_said_once(rows: Path) -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "wb") as full:
        done = run("evaluate", "--input", rows, out=full.fileno())
    assert done.returncode == 0
    assert nothing_wrong(done)
    assert done.stderr.count(b"standard output cannot be written any further (No space left on device)") == 1


@pytest.mark.parametrize(("flag", "code"), [("--output", 141), ("--summary", 141)])
def test_rows_that_nobody_reads_end_the_run(rows: Path, flag: str, code: int) -> None:
    done = run("evaluate", "--input", rows, flag, "-", out="unread")
    assert done.returncode == code
    assert nothing_wrong(done)


def test_rows_for_a_standard_output_that_is_closed_are_an_error(rows: Path, tmp_path: Path) -> None:
    done = run("evaluate", "--input", rows, "--output", "-", out="closed")
    assert done.returncode == 2
    assert b"-: cannot be written" in done.stderr
    assert nothing_wrong(done)


def test_no_file_becomes_standard_output_by_accident(tmp_path: Path) -> None:
    """A file that is opened where standard output is closed would get its number, and all that libraries print."""
    code = f"""
import os, sys
from arkfast.files import streams
streams.prepare()
file = open({str(tmp_path / "file")!r}, "wb")
assert file.fileno() > 2, file.fileno()
print("said", "\\ud800")
try:
    os.write(1, b"printed by a library")
except OSError:
    pass
"""
    done = subprocess.run(["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", sys.executable, "-c", code])
    assert done.returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


QUICK = ("manifest", "evaluate", "train")


@pytest.mark.parametrize("command", [None, *QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS if name not in QUICK)])
def test_help_that_nobody_reads(command: str | None) -> None:
    words = ["--help"] if command is None else [command, "--help"]
    done = run(*words, out="unread", PYTHONIOENCODING="ascii")
    assert done.returncode == (141 if command == "manifest" else 0)
    assert nothing_wrong(done)


@pytest.mark.slow
def test_a_training_goes_on_when_nobody_reads_its_log(tmp_path: Path) -> None:
    from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav

    tiny_checkpoint(tmp_path / "student")
    write_wav(tmp_path / "0.wav", synthetic_speech(0.5, seed=0))
    (tmp_path / "train.jsonl").write_text(json.dumps({"audio": "0.wav", "text": "one"}) + "\n")
    words = f"train --stage sft --student_model {tmp_path}/student --train_data {tmp_path}/train.jsonl --output_dir {tmp_path}/run"
    words += " --max_steps 3 --total_epochs 3 --device cpu --model_dtype float32 --dataloader_num_workers 0 --log_json true"
    for out in ("unread", "closed"):
        done = run(*words.split(), "--output_dir", tmp_path / out, out=out)
        assert done.returncode == 0, done.stderr.decode()
        assert nothing_wrong(done)
        assert len((tmp_path / out / "metrics.jsonl").read_text().splitlines()) >= 3
