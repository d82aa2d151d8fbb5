"""Transcriptions that are killed, stopped or meet faults: nothing is lost or done twice, and the output is what it would have been."""

from __future__ import annotations

import json
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from stand_in import CLIPS, argv, forked, ids_in, make_recordings, manifest, run, size, transcript, wait_until
from tiny_transcriptions import rows_of

from arkfast import Transcriber
from arkfast.audio import LogMel
from arkfast.data.pipeline import FeaturePipeline
from arkfast.engine import Engine
from arkfast.engine.slots import Slots
from arkfast.infer.command import main
from arkfast.infer.journal import Journal, _entry
from arkfast.infer.stop import SIGNALS
from arkfast.records import InputError, Utterance
from arkfast.testing import synthetic_speech, write_wav


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_recordings(tmp_path_factory.mktemp("audio"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_ten_kills_cost_nothing_but_time(folder: Path, recordings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, rng = 500, random.Random(7)
    bad = sorted(rng.sample(range(rows), 15))
    names = manifest(recordings, rows, bad)
    assert run("whole.jsonl", log="whole") == 1
    expected, written = Path("whole.jsonl").read_bytes(), size(Path("whole.jsonl.journal"))
    assert len(rows_of("whole.jsonl")) == rows
    assert len({row["pred_text"] for row in rows_of("whole.jsonl")}) > rows // 2, "with equal transcripts the comparison would show nothing"
    Path("out.jsonl").write_text('{"earlier": 1}\n')

    journal, killed = Path("out.jsonl.journal"), 0
    for i in range(10):
        child = forked(lambda: run("out.jsonl", pause=0.002), folder / "said")
        until = min(size(journal) + rng.randrange(0, written // 11), written * (i + 1) // 11)
        ended = wait_until(lambda until=until: size(journal) >= until, child)  # type: ignore[misc]
        assert ended is None, (folder / "said").read_text()
        time.sleep(rng.random() * 0.003)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        assert Path("out.jsonl").read_text() == '{"earlier": 1}\n'
    assert killed == 10
    before = ids_in(journal, names)
    assert 100 < len(before) < rows

    capsys.readouterr()
    assert run("out.jsonl", log="last") == 1
    assert Path("out.jsonl").read_bytes() == expected
    decoded = Path("last").read_text().split()
    assert sorted(decoded) == sorted(set(names) - before - {f"r{i}" for i in bad}), "only what was missing was done, and once"
    said = capsys.readouterr()
    assert f"{len(before)} of 500 rows were done by an earlier run" in said.err
    assert f"{len(before)} of an earlier run taken from its journal" in said.out
    for i in bad:
        assert f"in.jsonl:{i + 1}: " in rows_of("out.jsonl")[i]["error"]
    assert not list(folder.glob("out.jsonl.partial*"))


def test_a_kill_after_the_output_has_its_name_costs_nothing(folder: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest(recordings, 6, [])
    close = Journal.close

    def killed(self: Journal, *, remove: bool = False) -> None:
        if remove:
            os.kill(os.getpid(), signal.SIGKILL)
        close(self)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "close", killed)
        child = forked(lambda: run("out.jsonl"), folder / "said")
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    before = Path("out.jsonl").read_bytes()
    assert len(before.splitlines()) == 6
    assert Path("out.jsonl.journal").exists()
    assert run("out.jsonl", log="second") == 0
    assert Path("out.jsonl").read_bytes() == before
    assert not Path("second").exists()
    assert not Path("out.jsonl.journal").exists()


def test_one_bad_file_in_400(folder: Path, recordings: Path) -> None:
    names = manifest(recordings, 400, [123])
    assert run("out.jsonl") == 1
    rows = rows_of("out.jsonl")
    assert [row["id"] for row in rows] == names
    assert [row["id"] for row in rows if row["status"] == "error"] == ["r123"]
    assert "bad0.wav" in rows[123]["error"]
    assert rows[123]["pred_text"] is None
    pipeline = FeaturePipeline(LogMel(128), workers=0, max_seconds=30, prepare=None, on_bad_audio="skip:1", isolate=True)
    for i in (0, 1, 122, 124, 399):
        alone = Utterance(id="x", audio=str(recordings / f"{i % CLIPS}.wav"), begin=0.001 * (i // CLIPS))
        (item,) = pipeline.features([alone])
        assert isinstance(item.features, np.ndarray)
        assert rows[i]["pred_text"] == transcript(item.features)


def test_failed_rows_are_done_anew_when_asked_and_others_never(folder: Path, recordings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest(recordings, 12, [5])
    lines = Path("in.jsonl").read_text().splitlines()
    mended = folder / "late.wav"
    lines[7] = json.dumps({"id": "r7", "audio": str(mended)})
    lines[9] = "no json"
    Path("in.jsonl").write_text("\n".join(lines) + "\n")
    assert run("out.jsonl", log="first") == 1
    assert [i for i, row in enumerate(rows_of("out.jsonl")) if row["status"] == "error"] == [5, 7, 9]
    assert "--retry_failed does them anew" in capsys.readouterr().err
    before = Path("out.jsonl").read_bytes()
    assert run("out.jsonl", log="second") == 1
    assert Path("out.jsonl").read_bytes() == before
    assert not Path("second").exists(), "nothing was missing"

    write_wav(mended, synthetic_speech(0.3, seed=99))
    assert run("out.jsonl", log="third") == 1
    assert Path("third").read_text().split() == ["r7"], "a recording that has changed is another"
    (recordings_fixed := folder / "fixed.wav").write_bytes(mended.read_bytes())
    assert run("out.jsonl", "--retry_failed", log="fourth") == 1
    assert not Path("fourth").exists(), "what failed was tried, and failed before it came to the decoder"
    lines[5], lines[9] = (json.dumps({"id": f"r{i}", "audio": str(recordings_fixed)}) for i in (5, 9))
    Path("in.jsonl").write_text("\n".join(lines) + "\n")
    assert run("out.jsonl", log="fifth") == 0
    assert Path("fifth").read_text().split() == ["r5", "r9"]
    assert not Path("out.jsonl.journal").exists(), "a complete output in which nothing failed needs none"


def test_what_decides_the_transcript_decides_what_is_taken(folder: Path, recordings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = manifest(recordings, 6, [2])
    good = [name for name in names if name != "r2"]
    assert run("out.jsonl", log="first") == 1
    assert run("out.jsonl", "--batch_size", "3", "--quiet", log="second") == 1
    assert not Path("second").exists()
    capsys.readouterr()
    assert run("out.jsonl", "--max_new_tokens", "99", log="third") == 1
    assert Path("third").read_text().split() == good
    assert "6 results of runs with another model or other flags (max_new_tokens) are not taken" in capsys.readouterr().err
    (folder / "config.json").write_text("{}")  # the stand-in's checkpoint is this folder
    assert run("out.jsonl", log="fourth") == 1
    assert Path("fourth").read_text().split() == good
    assert run("out.jsonl", "--resume", "false", log="fifth") == 1
    assert Path("fifth").read_text().split() == good


def test_an_output_is_never_replaced_by_one_in_which_every_row_failed(
    folder: Path, recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest(recordings, 3, [0, 1, 2])
    assert run("out.jsonl") == 1, "where there is none, the failed rows are the output"
    assert len(rows_of("out.jsonl")) == 3
    Path("out.jsonl").write_text('{"earlier": 1}\n')
    capsys.readouterr()
    assert run("out.jsonl") == 2
    assert Path("out.jsonl").read_text() == '{"earlier": 1}\n'
    said = capsys.readouterr().err
    assert "out.jsonl: every one of 3 rows failed, so the earlier output stays as it was" in said
    assert "in.jsonl:1: " in said
    assert len(rows_of("out.jsonl.partial")) == 3
    Path("out.jsonl").write_text("")
    assert run("out.jsonl") == 1
    assert len(rows_of("out.jsonl")) == 3


def test_a_long_recording_that_was_begun_is_gone_on_with(folder: Path, recordings: Path) -> None:
    lines = [{"id": f"r{i}", "audio": str(recordings / f"{9 if i == 2 else i}.wav"), "parts": 16 if i == 2 else 0} for i in range(4)]
    Path("in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run("whole.jsonl", log="whole") == 0
    assert len(Path("whole").read_text().split()) == 19
    journal = Path("out.jsonl.journal")
    child = forked(lambda: run("out.jsonl", pause=0.01), folder / "said")
    assert wait_until(lambda: journal.exists() and journal.read_bytes().count(b'"segment": ') >= 6, child) is None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    entries = [_entry(line) for line in journal.read_bytes().splitlines(keepends=True)]
    before = {entry["segment"] for entry in entries if entry is not None and "segment" in entry}
    assert 6 <= len(before) < 16
    assert run("out.jsonl", log="last") == 0
    assert sorted(Path("last").read_text().split()) == sorted({"r3", *(f"r2@{i}" for i in range(16))} - before)
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    record, whole = (json.loads(Path(f"{name}.jsonl.run.json").read_text()) for name in ("out", "whole"))
    assert record["audio_seconds"] + record["resumed_seconds"] == pytest.approx(whole["audio_seconds"])
    assert record["resumed_seconds"] > 0.02 * len(before), "clips are a part of what an earlier run did"


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_ends_the_run_with_what_to_type_next(folder: Path, recordings: Path, number: signal.Signals) -> None:
    names = manifest(recordings, 60, [20])
    assert run("whole.jsonl", log="whole") == 1
    said = folder / "said"
    child = forked(lambda: run("out file.jsonl", pause=0.01), said)
    journal = Path("out file.jsonl.journal")
    assert wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 6, child) is None, said.read_text()
    os.kill(child, number)
    os.kill(child, number)  # a launcher and its process group often both send one
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + number
    assert not Path("out file.jsonl").exists()
    text = said.read_text()
    before = ids_in(journal, names)
    assert f"stopped after {len(before)} of 60 rows" in text
    assert "Traceback" not in text
    (line,) = (line for line in text.splitlines() if "to go on, type: " in line)
    assert line.startswith(f"arkfast transcribe: stopped by {number.name}; ")
    words = shlex.split(line.partition("to go on, type: ")[2])
    assert words == ["arkfast", "transcribe", *argv("out file.jsonl")]
    assert run("out file.jsonl", log="last") == 1
    assert Path("out file.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert not set(Path("last").read_text().split()) & before


def test_an_output_that_is_written_through_has_no_journal(
    folder: Path, recordings: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    manifest(recordings, 3, [1])
    assert run("-") == 1
    assert len(capfdbinary.readouterr().out.splitlines()) == 3
    assert {path.name for path in folder.iterdir()} == {"in.jsonl", "log"}


def test_a_full_disk_costs_nothing_but_time(folder: Path, recordings: Path) -> None:
    names = manifest(recordings, 40, [3])
    assert run("whole.jsonl", log="whole") == 1

    def in_little_room() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        return run("out.jsonl")

    child, said = forked(in_little_room, folder / "said"), folder / "said"
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 2, said.read_text()
    assert "cannot be written" in said.read_text()
    assert "the same command goes on from there" in said.read_text()
    before = ids_in(Path("out.jsonl.journal"), names)
    assert before
    assert run("out.jsonl", log="last") == 1
    assert not set(Path("last").read_text().split()) & before
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


@pytest.mark.parametrize("suffix", ["wav", "mp3"], ids=["clips are segments of the file", "clips are samples"])
def test_a_cut_recording_is_gone_on_with_where_the_device_was_lost(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    recording = folder / f"long.{suffix}"
    soundfile.write(recording, np.concatenate([synthetic_speech(0.8, seed=i) for i in range(8)]), 16000)
    Path("in.jsonl").write_text(json.dumps({"id": "long", "audio": str(recording)}) + "\n")
    flags = ["--model_path", str(model), "--device", "cpu", "--max_new_tokens", "8", "--max_audio_seconds", "1.5", "--batch_size", "1"]
    assert main(["in.jsonl", "--output", "whole.jsonl", *flags]) == 0
    (whole,) = rows_of("whole.jsonl")
    assert len(whole["segments"]) >= 5

    step, done = Engine.step, []

    def losing(self: Engine) -> Any:
        if len(done) >= 3:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        done.extend(found := step(self))
        return found

    with monkeypatch.context() as lost:
        lost.setattr(Engine, "step", losing)
        assert main(["in.jsonl", "--output", "out.jsonl", *flags]) == 2
    assert Path("out.jsonl.journal").read_bytes().count(b'"segment": ') == 3
    submitted: list[str] = []
    submit = Transcriber.submit

    def counted(self: Transcriber, utterance: Utterance, features: np.ndarray) -> int:
        submitted.append(utterance.id)
        return submit(self, utterance, features)

    monkeypatch.setattr(Transcriber, "submit", counted)
    assert main(["in.jsonl", "--output", "out.jsonl", *flags]) == 0
    assert len(submitted) == len(whole["segments"]) - 3
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_where_memory_runs_out_the_run_goes_on_in_fewer_slots(recordings: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [Utterance(id=str(i), audio=str(recordings / f"{i}.wav")) for i in range(CLIPS)]
    expected = list(Transcriber(model, device="cpu", batch_size=8, max_new_tokens=12)(clips))
    advance, steps = Slots.advance, []

    def scarce(self: Slots, *args: Any, **options: Any) -> Any:
        steps.append(len(self.entries))
        if len(steps) > 2 and len(self.entries) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return advance(self, *args, **options)

    monkeypatch.setattr(Slots, "advance", scarce)
    room = 2
    transcriber = Transcriber(model, device="cpu", batch_size=8, max_new_tokens=12)
    with pytest.warns(RuntimeWarning, match="no memory for") as said:
        assert list(transcriber(clips)) == expected
    assert [str(warning.message).partition("clips")[0].split()[-1] for warning in said] == ["8", "4"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(transcriber(clips)) == expected, "it stays at what there is room for"

    room = 0
    with pytest.warns(RuntimeWarning), pytest.raises(InputError, match="has no memory for one clip"):
        list(transcriber(clips))


@pytest.mark.slow
def test_kills_of_the_command_with_a_model(folder: Path, recordings: Path, model: Path) -> None:
    """Three of them; ``scripts/test_full.sh`` asks for ten."""
    rows, kills, rng = 500, int(os.environ.get("ARKFAST_KILLS", "3")), random.Random(11)
    bad = sorted(rng.sample(range(rows), 15))
    manifest(recordings, rows, bad)
    flags = ["--model_path", str(model), "--device", "cpu", "--max_new_tokens", "12", "--batch_size", "8"]

    def command(output: str) -> list[str]:
        return [sys.executable, "-m", "arkfast", "transcribe", "in.jsonl", "--output", output, *flags]

    done = subprocess.run(command("whole.jsonl"), capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    expected, written = Path("whole.jsonl").read_bytes(), size(Path("whole.jsonl.journal"))
    assert len({row["pred_text"] for row in rows_of("whole.jsonl")}) > 5
    journal = Path("out.jsonl.journal")
    for i in range(kills):
        process = subprocess.Popen(command("out.jsonl"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = min(size(journal) + rng.randrange(0, written // (kills + 1)), written * (i + 1) // (kills + 1))
        while size(journal) < until and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not Path("out.jsonl").exists()
    done = subprocess.run(command("out.jsonl"), capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "rows were done by an earlier run" in done.stderr
    assert Path("out.jsonl").read_bytes() == expected
    failed = [i for i, row in enumerate(rows_of("out.jsonl")) if row["status"] == "error"]
    assert failed == bad
    assert all(f"in.jsonl:{i + 1}: " in rows_of("out.jsonl")[i]["error"] for i in bad)
