"""What ``arkfast transcribe`` reads from and writes to besides plain files, and when it leaves an earlier output alone."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from arkfast.data import Fields
from arkfast.infer.command import main
from arkfast.infer.first_rows import look_through
from arkfast.records import InputError
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav

EARLIER = '{"earlier": "output"}\n'
CLIPS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with recordings and an earlier output."""
    for number in range(CLIPS):
        write_wav(tmp_path / f"{number}.wav", synthetic_speech(0.3 + 0.1 * number, seed=number))
    (tmp_path / "out.jsonl").write_text(EARLIER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(model: Path | str, *flags: str, input: str = "in.jsonl", output: str = "out.jsonl") -> int:
    base = ["--model_path", str(model), "--max_new_tokens", "6", "--device", "cpu"]
    return main(["--input", input, "--output", output, *base, *flags])


def manifest(rows: list[Any]) -> bytes:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


GOOD = [{"audio": f"{number}.wav", "text": f"text {number}"} for number in range(CLIPS)]


def output(path: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def piped(content: bytes) -> str:
    """The path of a pipe with this content, as a shell's ``<(…)`` gives it."""
    read, write = os.pipe()
    threading.Thread(target=lambda: (os.write(write, content), os.close(write)), daemon=True).start()
    return f"/dev/fd/{read}"


def without_ids(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "id"} for row in rows]


# What is read


def test_pipes_compressed_files_and_arrays_give_the_rows_of_the_file(folder: Path, model: Path) -> None:
    (folder / "in.jsonl").write_bytes(manifest(GOOD))
    assert run(model) == 0
    expected = output()
    assert [row["status"] for row in expected] == ["ok"] * CLIPS
    assert len({row["pred_text"] for row in expected}) > 1
    (folder / "in.jsonl.gz").write_bytes(gzip.compress(manifest(GOOD)))
    (folder / "in.json").write_text(json.dumps([row | {"audio": f"file://{folder}/{row['audio']}"} for row in GOOD]))
    for input, name in ((piped(manifest(GOOD)), "input"), ("in.jsonl.gz", "in.jsonl.gz"), ("in.json", "in.json")):
        assert run(model, input=input) == 0
        rows = output()
        assert [row["id"] for row in rows] == [f"{name}:{number}" for number in (1, 2, 3)]
        if name == "in.json":
            rows = [row | {"audio": Path(row["audio"]).name} for row in rows]
        assert without_ids(rows) == without_ids(expected)


def test_an_evaluation_with_a_model_reads_a_pipe(folder: Path, model: Path) -> None:
    from arkfast.evaluate.command import main as evaluate

    words = ["--model_path", str(model), "--max_new_tokens", "6", "--device", "cpu", "--summary", "summary.json"]
    assert evaluate(["--input", piped(manifest(GOOD)), "--tmp_output", "transcripts.jsonl", *words]) == 0
    assert json.loads(Path("summary.json").read_text(encoding="utf-8"))["utterances"] == CLIPS
    assert evaluate(["--input", piped(b""), "--output", "out.jsonl", *words]) == 2
    assert (folder / "out.jsonl").read_text() == EARLIER


@pytest.mark.parametrize("content", [b"", b"\n \n", b"[]"])
@pytest.mark.parametrize("pipe", [False, True])
def test_an_input_of_no_rows_is_an_error_and_touches_no_output(
    folder: Path, capsys: pytest.CaptureFixture[str], content: bytes, pipe: bool
) -> None:
    (folder / "in.jsonl").write_bytes(content)
    (folder / "out.jsonl.partial").write_text("of a run before")
    assert run("/nowhere", input=piped(content) if pipe else "in.jsonl") == 2
    assert "holds no rows" in capsys.readouterr().err
    assert (folder / "out.jsonl").read_text() == EARLIER
    assert (folder / "out.jsonl.partial").read_text() == "of a run before"


# What is written


def test_standard_output_holds_rows_alone(folder: Path, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "in.jsonl").write_bytes(manifest(GOOD))
    assert run(model) == 0
    capfd.readouterr()
    assert run(model, output="-") == 0
    said = capfd.readouterr()
    assert [json.loads(line) for line in said.out.splitlines()] == output()
    assert "3 of 3 rows transcribed" in said.err
    assert not (folder / "-").exists()


def test_a_named_pipe_gets_the_rows_and_stays(folder: Path, model: Path) -> None:
    (folder / "in.jsonl").write_bytes(manifest(GOOD))
    os.mkfifo("pipe")
    came: list[bytes] = []
    thread = threading.Thread(target=lambda: came.append(Path("pipe").read_bytes()), daemon=True)
    thread.start()
    assert run(model, output="pipe") == 0
    thread.join(60)
    assert len(came[0].splitlines()) == CLIPS
    assert stat.S_ISFIFO(Path("pipe").lstat().st_mode)


def test_a_reader_that_goes_away_ends_the_run(folder: Path, model: Path) -> None:
    (folder / "in.jsonl").write_bytes(manifest(GOOD))
    read, write = os.pipe()
    os.close(read)
    assert run(model, output=f"/dev/fd/{write}") == 2
    os.close(write)


# A manifest that is none

OTHERS = {
    "a recording": (None, [], r"in\.jsonl: is a WAV recording, no JSONL manifest; its rows name the recordings"),
    "UTF-16": ("\n".join(map(json.dumps, GOOD)).encode("utf-16"), [], r"in\.jsonl: is text in UTF-16, no JSONL manifest; save it as UTF-8"),
    "a table": (
        b"audio,text\n0.wav,zero\n1.wav,one\n",
        [],
        r"in\.jsonl: no row can be used, all for one reason, .*in\.jsonl:1: not valid JSON",
    ),
    "another field": (
        manifest(GOOD),
        ["--audio_field", "wav"],
        r"no row can be used, .*in\.jsonl:1: field 'wav' must be the path of a recor",
    ),
    "many": (
        manifest([{"wav": "0.wav"}] * 20 + GOOD),
        [],
        r"the first 20 rows cannot be used, .*field 'audio' must be the path of a record",
    ),
    "an address": (manifest([{"audio": "file://server/0.wav"}] * 3), [], r"is a file of the machine server"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_that_is_no_manifest_stops_the_run_before_anything_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    content, flags, said = OTHERS[kind]
    (folder / "in.jsonl").write_bytes((folder / "0.wav").read_bytes() if content is None else content)
    assert run("/nowhere", *flags, input="in.jsonl") == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert (folder / "out.jsonl").read_text() == EARLIER
    assert not list(folder.glob("*.partial*"))


def test_rows_of_different_faults_and_one_good_row_are_a_manifest(folder: Path) -> None:
    for rows in (
        [*["{"] * 19, GOOD[0]],
        ["{", {"text": "no audio"}],
        [{"audio": "0.wav", "begin_time": 2, "end_time": 1}],
        GOOD + ["{"] * 50,
    ):
        (folder / "in.jsonl").write_bytes(manifest(rows))
        assert look_through(folder / "in.jsonl", fields=Fields()).rows == len(rows)


@pytest.mark.parametrize(("missing", "code"), [(19, 1), (20, 2)])
def test_twenty_recordings_that_fail_for_one_reason_stop_the_run(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str], missing: int, code: int
) -> None:
    (folder / "in.jsonl").write_bytes(manifest([{"audio": f"elsewhere/{number}.wav"} for number in range(missing)] + GOOD))
    assert run(model) == code
    error = capsys.readouterr().err
    if code == 2:
        assert "in.jsonl: the first 20 rows all failed for one reason, and nothing was written; the first of them: in.jsonl:1: " in error
        assert (folder / "out.jsonl").read_text() == EARLIER
        assert not list(folder.glob("*.partial*"))
    else:
        assert [row["status"] for row in output()] == ["error"] * missing + ["ok"] * CLIPS
        assert "in.jsonl:1: " in error
        assert "(and 18 more like it)" in error


def test_failed_rows_are_explained(folder: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "text.wav").write_text("no audio")
    (folder / "empty.wav").write_bytes(b"")
    bad = [{"audio": "gone.wav"}, {"audio": "text.wav"}, {"audio": "away.wav"}, "{", {"audio": "empty.wav"}]
    (folder / "in.jsonl").write_bytes(manifest([GOOD[0], *bad]))
    assert run(model, "--allow_failures") == 0
    lines = capsys.readouterr().err.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("arkfast transcribe: failed rows: 5, "))
    assert [line.split(": ")[0].strip() for line in lines[at + 1 : at + 4]] == ["in.jsonl:2", "in.jsonl:3", "in.jsonl:5"]
    assert lines[at + 1].endswith("(and 1 more like it)")
    assert lines[at + 4].strip() == "and 1 other reason"


# Repeated ids


def test_repeated_ids_are_an_error_that_names_both_lines(folder: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": "a"} | GOOD[0], {"id": "b"} | GOOD[1], {"id": "a"} | GOOD[0]]
    (folder / "in.jsonl").write_bytes(manifest(rows))
    assert run("/nowhere") == 2
    assert "in.jsonl:3: id 'a' stands already at in.jsonl:1" in capsys.readouterr().err
    assert (folder / "out.jsonl").read_text() == EARLIER
    assert run(model, "--allow_repeats") == 0
    assert [row["id"] for row in output()] == ["a", "b"]
    assert re.match("2 of 2 rows transcribed, .*1 repeat left out, ", capsys.readouterr().out)
    (folder / "in.jsonl").write_bytes(manifest([*rows[:2], {"id": "a"} | GOOD[2]]))
    assert run("/nowhere", "--allow_repeats") == 2
    assert "in.jsonl:3: id 'a' stands already at in.jsonl:1 with other fields" in capsys.readouterr().err


# Two runs


HOLD = """
import sys
from pathlib import Path
from arkfast.infer.jsonl import AtomicJsonl
with AtomicJsonl(Path("out.jsonl")) as writer:
    writer.write({"row": "of the first run"})
    print("begun", flush=True)
    sys.stdin.read()
"""


def test_the_second_run_of_one_output_stops_at_once_and_names_the_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "in.jsonl").write_bytes(manifest(GOOD))
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "begun\n"
        assert run("/nowhere") == 2
        assert f"out.jsonl: is being written by another run, process {first.pid} on {socket.gethostname()}" in capsys.readouterr().err
        assert output("out.jsonl.partial") == [{"row": "of the first run"}]
        first.communicate("", timeout=60)
    assert output() == [{"row": "of the first run"}]
    assert not list(folder.glob(".*"))
    assert not list(folder.glob("*.partial*"))


# Strict JSON


def test_numbers_that_json_has_no_form_for_are_null_and_said(folder: Path, model: Path) -> None:
    rows = ['{"audio": "0.wav", "score": 1e999, "deep": {"list": [1, NaN]}, "fine": 1e99}', '{"audio": "gone.wav", "score": -Infinity}']
    (folder / "in.jsonl").write_bytes(manifest(rows))
    assert run(model) == 1

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    good, bad = (json.loads(line, parse_constant=refuse) for line in (folder / "out.jsonl").read_text().splitlines())
    assert (good["score"], good["deep"], good["fine"], bad["score"]) == (None, {"list": [1, None]}, 1e99, None)
    assert [warning.split(" of the input")[0] for warning in good["warnings"]] == ["field 'score'", "field 'deep'"]
    assert len(bad["warnings"]) == 1


def test_a_repeated_default_id_is_one_too(folder: Path) -> None:
    (folder / "in.jsonl").write_bytes(manifest([GOOD[0], {"id": "in.jsonl:1"} | GOOD[1]]))
    with pytest.raises(InputError, match=r"in\.jsonl:2: id 'in\.jsonl:1' stands already at .*in\.jsonl:1;"):
        look_through(folder / "in.jsonl", fields=Fields())
