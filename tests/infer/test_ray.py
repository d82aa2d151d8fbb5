"""Rows that are handed out to actors of Ray: the output is that of one process, whoever is killed."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from stand_in import StandIn, ids_in, make_recordings, manifest
from web import served

from arkfast.infer.command import main
from arkfast.infer.journal import Journal, key_of
from arkfast.infer.loading import load_transcriber
from arkfast.infer.options import TranscribeOptions
from arkfast.infer.ranks.plan import Lengths
from arkfast.infer.ray.actor import ChunkTranscriber, Job
from arkfast.infer.ray.chunk import Given, Notes, packed, unpacked
from arkfast.infer.ray.lead import _chunks, environment
from arkfast.infer.ray.options import RayOptions
from arkfast.infer.result import Result
from arkfast.infer.resume import Rows, decided
from arkfast.infer.stream import DeviceLost
from arkfast.records import InputError, Utterance

ROWS = 500
BAD = sorted(random.Random(5).sample(range(ROWS), 15))


def utterance(i: int, **more: Any) -> Utterance:
    return Utterance(id=f"r{i}", audio=f"/nowhere/{i}.wav", where=f"in.jsonl:{i + 1}", **more)


def test_a_chunk_travels_whole_but_for_what_no_transcript_depends_on() -> None:
    asked = utterance(
        3, begin=0.5, end=2.25, channel=(0, 2), audio_track=1, on_truncated="fail", text="said", language="zh",
        extra={"hotwords": ["a"], "duration": 7.5, "note": "mine"},
    )  # fmt: skip
    clip = {"text_raw": "x", "finish_reason": "stop", "seconds": 1.0}
    (back,) = unpacked(packed([Given(8, "k", asked, {"r3@0": clip})]))
    assert (back.row, back.key, back.clips) == (8, "k", {"r3@0": clip})
    assert back.utterance == utterance(
        3, begin=0.5, end=2.25, channel=(0, 2), audio_track=1, on_truncated="fail", language="zh",
        extra={"hotwords": ["a"], "duration": 7.5},
    )  # fmt: skip


def test_results_come_back_as_the_journal_keeps_them(tmp_path: Path) -> None:
    rows = [Given(i, key_of(utterance(i)), utterance(i)) for i in range(4)]
    notes = Notes(rows)
    known = Rows(((given.row, given.utterance) for given in rows), notes)
    blocks, journal = [], Journal(tmp_path / "j", rows=4, decides={})
    for item in known.items():
        assert isinstance(item, Utterance)
        turn = known.next()
        failed = item.id == "r2"
        result = Result(utterance=item, error=f"{item.where}: bad") if failed else Result(utterance=item, text_raw=item.id, seconds=2.0)
        assert turn.key is not None
        notes.add(turn.row, turn.key, result)
        blocks += [entries for entries in [notes.take(3)] if entries]
    blocks.append(notes.take(1))
    assert [len(entries) for entries in blocks] == [3, 1]
    for entry in map(json.loads, [entry for entries in blocks for entry in entries]):
        journal.add_stored(entry["row"], entry["key"], entry["result"])
    journal.close()
    again = Journal(tmp_path / "j", rows=4, decides={})
    assert again.held == 4
    found = [again.find(given.row, given.key, given.utterance) for given in rows]
    assert [result and result.text_raw for result in found] == ["r0", "r1", None, "r3"]
    assert found[2] is not None
    assert found[2].error == "in.jsonl:3: bad"


def test_what_the_journal_holds_is_not_handed_out_and_clips_of_a_broken_off_row_go_along(tmp_path: Path) -> None:
    items = [utterance(i) for i in range(40)]
    journal = Journal(tmp_path / "j", rows=40, decides={})
    for i in range(0, 30):
        journal.add(i, key_of(items[i]), Result(utterance=items[i], text_raw="t", seconds=1.0))
    clip = Result(utterance=utterance(35), text_raw="part", seconds=1.0)
    journal.add(35, key_of(items[35]), clip, segment="r35@0")
    journal.close()
    journal = Journal(tmp_path / "j", rows=40, decides={})
    lengths = Lengths()
    lengths._seconds.extend([1.0] * 40)
    starts = lengths.chunks(1, seconds=300, rows=256, done=journal.holds)
    chunks = list(_chunks(iter(items), journal, starts))
    assert [given.row for chunk in chunks for given in chunk] == list(range(30, 40))
    assert len(chunks) > 4
    assert [given.row for chunk in chunks for given in chunk if given.clips] == [35]
    given = next(given for chunk in chunks for given in chunk if given.clips)
    found = Notes([given]).find(35, "", utterance(35), segment="r35@0")
    assert found is not None
    assert found.text_raw == "part"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"ray_address": "auto"}, "no effect without --ray"),
        ({"ray_actors": "2"}, "no effect without --ray"),
        ({"ray": True, "ray_address": "ray://head:10001"}, "Ray's client cannot do this"),
        ({"ray": True, "ray_actors": "0"}, "expected a number from 1"),
        ({"ray": True, "ray_actors": "4:2"}, "expected a number from 1"),
    ],
)
def test_flags_that_make_no_sense(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        RayOptions(**flags)._check_ray()


def test_actors_as_a_number_or_between_two() -> None:
    assert RayOptions().actors() is None
    assert RayOptions(ray=True, ray_actors="3").actors() == (3, 3)
    assert RayOptions(ray=True, ray_actors="2:16").actors() == (2, 16)


def test_nothing_is_reported_and_a_ray_of_ones_own_is_this_machines_alone() -> None:
    assert environment(None) == {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    assert environment("auto") == {"RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture
def job(model: Path) -> Job:
    """As a run makes it, for an actor in this process."""
    options = TranscribeOptions(device="cpu", max_new_tokens=12, batch_size=4, quiet=True)
    return Job(model, options, load_transcriber, decided(load_transcriber(model, options), options), "/nowhere", 3)


def test_an_actor_gives_back_what_the_journal_wants_in_blocks_that_are_the_same_again(folder: Path, job: Job) -> None:
    recordings = make_recordings(folder)
    names = ["0.wav", "1.wav", "bad0.wav", "2.wav", "3.wav"]
    with served(recordings) as web:
        rows = [Utterance(id=name, audio=str(recordings / name), where=f"in.jsonl:{i + 1}") for i, name in enumerate(names)]
        rows += [Utterance(id=f"there-{name}", audio=f"{web.url}/{name}?sig=1", where="in.jsonl:9") for name in ("1.wav", "none.wav")]
        chunk = packed(Given(10 + i, f"key{i}", row) for i, row in enumerate(rows))
        actor = ChunkTranscriber(job)
        blocks = [
            [[json.loads(entry) for entry in table.column("entry").to_pylist()] for table in actor(pyarrow.table({"chunk": [chunk]}))]
            for _ in range(2)
        ]
    assert [len(block) for block in blocks[0]] == [3, 3, 2]
    entries = [entry for block in blocks[0] for entry in block]
    assert entries[:-1] == [entry for block in blocks[1] for entry in block][:-1]
    assert entries[-1]["processing_seconds"] > 0
    assert [(entry["row"], entry["key"]) for entry in entries[:-1]] == [(10 + i, f"key{i}") for i in range(7)]
    assert entries[1]["result"]["text_raw"] == entries[5]["result"]["text_raw"]
    assert entries[2]["result"]["error"].startswith(f"in.jsonl:3: {recordings}/bad0.wav: not audio")
    assert entries[6]["result"]["error"].endswith("/none.wav?…: there is no such file")


def test_an_actor_that_would_give_other_transcripts_does_not_begin(job: Job) -> None:
    with pytest.raises(InputError, match=r"since these differ there: dtype, max_new_tokens"):
        ChunkTranscriber(replace(job, decides={**job.decides, "dtype": "bfloat16", "max_new_tokens": 13}))


def test_an_actor_that_cannot_go_on_says_why(folder: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = ChunkTranscriber(job)

    def full(*_: object, **__: object) -> None:
        raise InputError("the disk is full")

    monkeypatch.setattr(actor._transcriber, "results", full)
    tables = list(actor(pyarrow.table({"chunk": [packed([Given(0, "k", Utterance(id="a", audio="a.wav"))])]})))
    assert [json.loads(entry) for table in tables for entry in table.column("entry").to_pylist()] == [{"fault": "the disk is full"}]


def test_an_actor_whose_device_is_lost_ends_so_that_another_takes_its_place(
    folder: Path, job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recordings = make_recordings(folder)
    actor = ChunkTranscriber(job)

    def lost() -> None:
        raise DeviceLost("the device cuda failed")

    def ended(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(actor._transcriber, "step", lost)
    monkeypatch.setattr(os, "_exit", ended)
    chunk = packed([Given(0, "k", Utterance(id="a", audio=str(recordings / "0.wav")))])
    with pytest.raises(SystemExit):
        list(actor(pyarrow.table({"chunk": [chunk]})))
    assert "the device cuda failed" in capsys.readouterr().err


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flags(model: Path, output: str) -> list[str]:
    words = ["in.jsonl", "--output", output, "--model_path", str(model), "--device", "cpu"]
    return [*words, "--max_new_tokens", "12", "--batch_size", "4"]


def test_without_the_package_the_error_says_what_to_install(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest(make_recordings(folder), 3, [])
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("arkfast.infer.ray.lead.find_spec", lambda name: None if name == "ray" else find_spec(name))
    assert main([*flags(model, "out.jsonl"), "--ray"]) == 2
    assert "--ray needs the package ray, pip install -e '.[ray]'" in capsys.readouterr().err
    assert not Path("out.jsonl").exists()


def test_where_ray_cannot_go(folder: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest(make_recordings(folder), 3, [])
    for words, said in (
        (["--output", "-"], "give --output a file"),
        (["--shard", "1/2"], "leave out torchrun and --shard"),
        (["--device", "cuda:1"], "Ray gives each actor a GPU of its own"),
    ):
        assert main([*flags(model, "out.jsonl"), "--ray", *words]) == 2
        assert said in capsys.readouterr().err


def test_importing_arkfast_or_its_command_line_does_not_import_ray() -> None:
    code = "import sys, arkfast.cli, arkfast.infer.command; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def rows_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its sockets and logs; its path is short, since a socket's name has an end."""
    found = Path(tempfile.mkdtemp(prefix="arkfast-ray"))
    yield found
    shutil.rmtree(found, ignore_errors=True)


def left_in(ray_folder: Path) -> list[int]:
    """The processes that were started for a Ray of this folder, wherever they belong by now."""
    found, mark = [], f"RAY_TMPDIR={ray_folder}".encode()
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # it has ended, or is somebody else's
            if entry.name.isdigit() and int(entry.name) != os.getpid() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def end_all(ray_folder: Path) -> None:
    """Kill what is left of a Ray."""
    deadline = time.monotonic() + 30
    while pids := left_in(ray_folder):
        assert time.monotonic() < deadline, pids
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


@pytest.fixture
def start(ray_folder: Path) -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def run(model: Path) -> subprocess.Popen[str]:
        code = "import sys, stand_in; from arkfast.infer.command import main; sys.exit(main(sys.argv[1:], load=stand_in.load_slowly))"
        command = [sys.executable, "-c", code, *flags(model, "out.jsonl"), "--ray", "--ray_actors", "2"]
        variables = {"OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(ray_folder), "PYTHONPATH": str(Path(__file__).parent)}
        with Path("said").open("w") as said:
            started.append(subprocess.Popen(command, stdout=said, stderr=said, env=os.environ | variables, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()
    end_all(ray_folder)


def results_in(path: str) -> int:
    return Path(path).read_bytes().count(b'"row":') if Path(path).exists() else 0


def until(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not ready():
        assert process.poll() is None, Path("said").read_text()
        assert time.monotonic() < deadline, Path("said").read_text()
        time.sleep(0.02)


def below(parent: int) -> dict[int, str]:
    """The processes that a process has started, and those that they have, with their command lines."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat, line = (entry / "stat").read_text(), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it has ended
                continue
            parents[int(entry.name)] = (int(stat.rpartition(")")[2].split()[1]), line)
    found, grown = {parent}, True
    while grown:
        more = {pid for pid, (above, _) in parents.items() if above in found} - found
        grown, found = bool(more), found | more
    return {pid: parents[pid][1] for pid in found - {parent}}


def listening(pids: set[int]) -> set[str]:
    """The addresses, as the system writes them, on which any of some processes waits for connections."""
    sockets = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(os.readlink(descriptor))
            except OSError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].partition(":")[0])
    return found


LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


@pytest.mark.slow
def test_runs_on_ray_that_are_killed_end_as_one_that_was_not(
    folder: Path, model: Path, ray_folder: Path, start: Callable[[Path], subprocess.Popen[str]]
) -> None:
    names, log = manifest(make_recordings(folder), ROWS, BAD), Path("log")
    assert main(flags(model, "whole.jsonl"), load=lambda path, _: StandIn(path, log)) == 1  # type: ignore[arg-type, return-value]
    journal, chance = Path("out.jsonl.journal"), random.Random(11)

    # The whole run is killed, at any moment once results have begun to come.
    process = start(model)
    until(process, lambda: results_in("out.jsonl.journal") >= 1)
    time.sleep(chance.random() * 0.5)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    end_all(ray_folder)
    assert not Path("out.jsonl").exists()
    done = ids_in(journal, names)
    assert 0 < len(done) < ROWS, "it was killed in the middle"
    log.unlink()

    # Then one of the two actors, and the run goes on.
    process = start(model)
    until(process, lambda: results_in("out.jsonl.journal") >= len(done) + 20)
    actors = [pid for pid, line in below(process.pid).items() if "ray::" in line and "ChunkTranscriber" in line]
    assert len(actors) == 2, below(process.pid)
    os.kill(actors[0], signal.SIGKILL)
    assert results_in("out.jsonl.journal") < ROWS, "it was killed in the middle"
    assert listening({process.pid, *below(process.pid)}) <= LOOPBACK
    assert process.wait(timeout=240) == 1, Path("said").read_text()

    said = Path("said").read_text()
    assert f"{len(done)} of {ROWS} rows were done by an earlier run" in said
    rows = rows_of("out.jsonl")
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert len(rows) == ROWS
    assert [i for i, row in enumerate(rows) if row["status"] == "error"] == BAD
    assert all(f"in.jsonl:{i + 1}: " in rows[i]["error"] for i in BAD)
    assert not done & set(log.read_text().split()), "what was done is not done again"
    record = json.loads(Path("out.jsonl.run.json").read_text())
    assert record["resumed"] == len(done)
    assert record["audio_seconds"] > 0
    assert record["processing_seconds"] > 0
