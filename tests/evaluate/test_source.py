"""What ``arkfast evaluate`` reads: rows that are named by their lines, none of them twice, from whatever can be read."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from arkfast.evaluate.command import main

GOOD = [{"id": "a", "text": "one two", "pred_text": "one two"}, {"id": "b", "text": "three", "pred_text": "tree"}]
TOOK_ONCE = "1 rows repeat an earlier one in every field and were taken once"


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def scores(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_repeated_id_is_an_error_that_names_both_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n" + lines([*GOOD, GOOD[0]]))
    assert main(["--input", str(source), "--summary", str(tmp_path / "s.json")]) == 2
    assert f"{source}:4: id 'a' stands already at {source}:2; ids must be unique" in capsys.readouterr().err
    assert not (tmp_path / "s.json").exists()


def test_identical_rows_are_taken_once_where_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, summary = tmp_path / "in.jsonl", tmp_path / "s.json"
    source.write_bytes(lines([*GOOD, GOOD[0]]))
    assert main(["--input", str(source), "--summary", str(summary), "--allow_repeats"]) == 0
    found = scores(summary)
    assert (found["utterances"], found["wer"], found["repeats"]) == (2, 1 / 3, 1)
    assert TOOK_ONCE in capsys.readouterr().out
    source.write_bytes(lines([*GOOD, GOOD[0] | {"pred_text": "other"}]))
    assert main(["--input", str(source), "--allow_repeats"]) == 2
    assert "with other fields, and --allow_repeats takes identical rows alone" in capsys.readouterr().err
    source.write_bytes(lines(GOOD))
    assert main(["--input", str(source), "--summary", str(summary)]) == 0
    assert scores(summary)["repeats"] == 0
    assert TOOK_ONCE not in capsys.readouterr().out


def test_rows_without_ids_are_all_counted(tmp_path: Path) -> None:
    source, summary = tmp_path / "in.jsonl", tmp_path / "s.json"
    source.write_bytes(lines([{"text": "a", "pred_text": "a"}] * 3))
    assert main(["--input", str(source), "--summary", str(summary)]) == 0
    assert scores(summary)["utterances"] == 3


def test_repeats_in_what_is_compared_with_are_errors_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    ours.write_bytes(lines(GOOD))
    theirs.write_bytes(lines([*GOOD, GOOD[1]]))
    assert main(["--input", str(ours), "--compare", str(theirs)]) == 2
    assert f"{theirs}:3: id 'b' stands already at {theirs}:2" in capsys.readouterr().err
    assert main(["--input", str(ours), "--compare", str(theirs), "--allow_repeats"]) == 0


def test_a_manifest_with_a_repeated_id_is_refused_before_a_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(lines([{"audio": "a.wav", "text": "x", "id": "a"}, {"audio": "b.wav", "text": "y", "id": "a"}]))
    flags = ["--model_path", str(tmp_path / "no model"), "--output", str(tmp_path / "out.jsonl")]
    assert main(["--input", str(source), *flags]) == 2
    said = capsys.readouterr().err
    assert f"{source}:2: id 'a' stands already at {source}:1" in said
    assert "nothing was transcribed" in said


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": 5, "pred_text": "a"}, "field 'text' must be text, got int"),
        ({"text": "a", "pred_text": ["a"]}, "field 'pred_text' must be text, got list"),
        ({"text": "a", "pred_text": "a", "language": 1}, "field 'language' must be text, got int"),
        ({"text": "a", "pred_text": "a", "session": None}, "field 'session', by which --group_by resamples"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], message: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n\n" + lines([GOOD[0] | {"session": "s"}, row | {"id": "second"}]))
    assert main(["--input", str(source), "--group_by", "session"]) == 2
    assert f"{source}:4: {message}" in capsys.readouterr().err
    if {"session", "language"}.isdisjoint(row):  # and so it is in what is compared with, whose language is ours
        ours = tmp_path / "ours.jsonl"
        ours.write_bytes(lines([GOOD[0], {"id": "second", "text": "a", "pred_text": "a"}]))
        assert main(["--input", str(ours), "--compare", str(source)]) == 2
        assert f"{source}:4: {message}" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["bom", "gz", "array", "crlf"])
def test_forms_that_the_manifest_reader_takes_are_taken_here(tmp_path: Path, form: str) -> None:
    source, summary = tmp_path / ("in.jsonl.gz" if form == "gz" else "in.jsonl"), tmp_path / "s.json"
    plain = lines(GOOD)
    source.write_bytes(
        {
            "bom": b"\xef\xbb\xbf" + plain,
            "gz": gzip.compress(plain),
            "array": json.dumps(GOOD, indent=1).encode(),
            "crlf": plain.replace(b"\n", b"\r\n"),
        }[form]
    )
    assert main(["--input", str(source), "--summary", str(summary)]) == 0
    assert (scores(summary)["utterances"], scores(summary)["wer"]) == (2, 1 / 3)


def test_a_pipe_is_scored_as_a_file_is(tmp_path: Path) -> None:
    pipe, summary = tmp_path / "pipe", tmp_path / "s.json"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(lines(GOOD)))
    writer.start()
    assert main(["--input", str(pipe), "--summary", str(summary)]) == 0
    writer.join(60)
    found = scores(summary)
    assert (found["utterances"], found["transcripts_sha256"]) == (2, None)


def test_standard_input_and_output_carry_rows_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "arkfast.cli", "evaluate", "--input", "-", "--output", "-", "--summary", str(tmp_path / "s.json")]
    done = subprocess.run(command, input=lines(GOOD), capture_output=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["outcome"] for line in done.stdout.splitlines()] == ["scored", "scored"]
    assert b"WER" in done.stderr
    found = scores(tmp_path / "s.json")
    assert (found["input"], found["output"], found["output_sha256"], found["groups"][0]["preset"]) == ("-", None, None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.json"]


def test_an_output_that_is_no_file_keeps_no_transcripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for output in ("-", os.devnull):
        with pytest.raises(SystemExit) as caught:
            main(["--input", str(tmp_path / "in.jsonl"), "--model_path", str(tmp_path), "--output", output])
        assert caught.value.code == 2
        assert "--model_path needs --tmp_output, or a file as --output" in capsys.readouterr().err
