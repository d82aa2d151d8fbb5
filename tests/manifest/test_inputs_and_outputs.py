"""What ``arkfast manifest`` reads from and writes to besides plain files, and a manifest that is none."""

from __future__ import annotations

import gzip
import json
import os
import re
import threading
from pathlib import Path

import pytest

from arkfast.manifest.command import main
from arkfast.testing import synthetic_speech, write_wav


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number in range(2):
        write_wav(tmp_path / f"{number}.wav", synthetic_speech(0.3, seed=number))
    (tmp_path / "clean.jsonl").write_text("earlier\n")
    (tmp_path / "rejects.jsonl").write_text("earlier\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


GOOD = content([{"audio": "0.wav"}, {"audio": "1.wav"}, {"audio": "gone.wav"}])


def piped(data: bytes) -> str:
    read, write = os.pipe()
    threading.Thread(target=lambda: (os.write(write, data), os.close(write)), daemon=True).start()
    return f"/dev/fd/{read}"


def scan(input: str, output: str = "clean.jsonl", rejects: str = "rejects.jsonl") -> int:
    return main(["scan", "--input", input, "--output", output, "--rejects", rejects])


@pytest.mark.parametrize("kind", ["pipe", "gzip", "array"])
def test_pipes_compressed_files_and_arrays_are_scanned(folder: Path, kind: str) -> None:
    (folder / "in.gz").write_bytes(gzip.compress(GOOD))
    (folder / "in.json").write_text(json.dumps([json.loads(line) for line in GOOD.splitlines()], indent=1))
    assert scan({"pipe": piped(GOOD), "gzip": "in.gz", "array": "in.json"}[kind]) == 1
    rows = [json.loads(line) for line in (folder / "clean.jsonl").read_text().splitlines()]
    assert [row["audio"] for row in rows] == ["0.wav", "1.wav"]
    assert len((folder / "rejects.jsonl").read_text().splitlines()) == 1


def test_rows_on_standard_output_stand_alone_and_leave_no_cache(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "in.jsonl").write_bytes(GOOD)
    assert scan("in.jsonl", output="-", rejects="/dev/null") == 1
    said = capfd.readouterr()
    assert [Path(json.loads(line)["audio"]).name for line in said.out.splitlines()] == ["0.wav", "1.wav"]
    assert "rejected ones → /dev/null" in said.err
    assert not list(folder.glob("*sqlite3"))
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("kind", ["recording", "field", "empty"])
def test_a_file_that_is_no_manifest_leaves_the_earlier_scan(folder: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    (folder / "in.jsonl").write_bytes(content([{"wav": "0.wav"}] * 20) + GOOD if kind == "field" else b"\n")
    assert scan("0.wav" if kind == "recording" else "in.jsonl") == 2
    said = {"recording": "0.wav: is a WAV recording", "field": "the first 20 rows cannot be used", "empty": "holds no rows"}[kind]
    assert said in capsys.readouterr().err
    assert (folder / "clean.jsonl").read_text() == (folder / "rejects.jsonl").read_text() == "earlier\n"


def test_twenty_missing_recordings_are_what_a_scan_is_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "in.jsonl").write_bytes(content([{"audio": f"gone{number}.wav"} for number in range(30)]) + GOOD)
    assert scan("in.jsonl") == 1
    assert len((folder / "clean.jsonl").read_text().splitlines()) == 2
    assert re.search(r"rejected rows, for example:\n  in\.jsonl:1: .*gone0\.wav: no such file\n$", capsys.readouterr().err)
