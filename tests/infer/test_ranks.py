"""Several ranks that transcribe one input, and shards of an input: the output is that of one process, whoever dies."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arkfast.data.rows import Row
from arkfast.infer.command import main
from arkfast.infer.ranks.journals import own_journal, take_in, wrote_something
from arkfast.infer.ranks.plan import Lengths, Shard, seconds_of
from arkfast.infer.ranks.team import Tally, Team, team_of
from arkfast.records import InputError, Utterance
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav

CLIPS = 10


def lengths_of(*seconds: float) -> Lengths:
    lengths = Lengths()
    for i, length in enumerate(seconds):
        lengths(Row(source=Path("m"), number=i + 1, raw="", end=0, utterance=Utterance(id=str(i), audio="a", begin=1.0, end=1.0 + length)))
    return lengths


def test_chunks_hold_all_rows_once_and_no_more_audio_than_they_may() -> None:
    rng = random.Random(3)
    seconds = [rng.choice([0.5, 3.0, 20.0, 400.0]) for _ in range(5000)]
    starts = lengths_of(*seconds).chunks(4)
    assert starts[0] == 0
    assert list(starts) == sorted(set(starts))
    for begin, end in zip(starts, [*starts[1:], len(seconds)], strict=True):
        assert end - begin == 1 or sum(seconds[begin:end]) <= 300
        assert end - begin <= 256


def test_a_small_input_has_chunks_for_every_rank() -> None:
    assert len(lengths_of(*[1.0] * 100).chunks(4)) >= 32
    assert lengths_of(*[1.0] * 3).chunks(8) == array("q", [0, 1, 2])
    assert lengths_of(0.0, 0.0).chunks(2) == array("q", [0, 1])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_shards_are_all_rows_once_in_order_and_balanced_by_length(count: int) -> None:
    rng = random.Random(count)
    seconds = sorted(rng.random() * 30 for _ in range(40))
    lengths = lengths_of(*seconds)
    parts = [lengths.shard(Shard(number, count)) for number in range(1, count + 1)]
    assert [row for part in parts for row in part] == list(range(40))
    assert all(parts)
    if count < 10:
        share = sum(seconds) / count
        assert all(abs(sum(seconds[part.start : part.stop]) - share) <= 30 for part in parts)


def test_what_a_row_says_of_its_length() -> None:
    assert seconds_of(Utterance(id="a", audio="a", begin=2.0, end=5.0)) == 3
    assert seconds_of(Utterance(id="a", audio="a", extra={"duration": 7})) == 7
    assert seconds_of(Utterance(id="a", audio="a", extra={"duration": "7"})) == 10


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/0", "a/b", "1/3/4", "-1/3"])
def test_shards_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="--shard"):
        Shard.parse(text)


def test_journals_of_ranks_are_taken_in_and_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    place = tmp_path / "out[1].jsonl.journal"
    assert not wrote_something(place)
    place.write_bytes(b"one\ntor")
    own_journal(place, 0).write_bytes(b"two\nthree\n")
    own_journal(place, 11).write_bytes(b"four\nfi")
    (tmp_path / "out[1].jsonl.journal.rank_notes").write_text("mine")
    assert wrote_something(place)
    take_in(place)
    assert place.read_bytes() == b"one\ntor\ntwo\nthree\nfour\nfi\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out[1].jsonl.journal", "out[1].jsonl.journal.rank_notes"]
    own_journal(place, 3).write_bytes(b"six\n")
    take_in(place, keep=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out[1].jsonl.journal.rank_notes"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def pair() -> Iterator[tuple[Team, Team]]:
    """Two ranks in one process; beats come every 0.03 s."""
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    teams = [team_of(timeout=0.3, environment=variables | {"RANK": str(rank)}) for rank in range(2)]
    assert teams[0] is not None
    assert teams[1] is not None
    with teams[0], teams[1]:
        yield teams[0], teams[1]


def test_chunks_are_handed_out_once_and_those_of_a_dead_rank_again(pair: tuple[Team, Team]) -> None:
    zero, one = pair
    ours, theirs = zero.next_chunks(5), one.next_chunks(5)
    assert [next(ours), next(theirs), next(ours), next(theirs), next(theirs)] == [0, 1, 2, 3, 4]
    assert list(ours) == list(theirs) == []
    zero.end(0)
    one.end(3)
    left = zero.not_ended(range(5))
    assert left == [1, 2, 4]
    assert zero.take_over(left) == [], "both live"
    one._over.set()  # its beats stop, and it does not say that it ends, as when it is killed
    deadline = time.monotonic() + 20
    while zero.lives(1):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert zero.take_over(left) == [1, 4]
    assert zero.take_over(left) == [], "they are its own now"
    assert one.take_over([1, 4]) == [], "rank 0 lives"


def test_a_rank_that_has_ended_is_not_waited_for_and_its_figures_stay(pair: tuple[Team, Team]) -> None:
    zero, one = pair
    one.tally = Tally(rows=3, failed=1, seconds=2.5, processing_seconds=0.5)
    chunk = next(one.next_chunks(1))
    assert zero.lives(1)
    one.__exit__()
    assert not zero.lives(1)
    assert zero.others() == Tally(rows=3, failed=1, seconds=2.5, processing_seconds=0.5)
    assert zero.take_over([chunk]) == [chunk]


def test_what_rank_0_publishes_is_heard_until_it_ends(pair: tuple[Team, Team]) -> None:
    zero, one = pair
    zero.publish("run", "words")
    assert one.told("run") == "words"
    zero._store.set("ended/0", "1")
    assert one.told("more") is None


@pytest.mark.parametrize(
    ("variables", "match"),
    [
        ({"WORLD_SIZE": "2"}, "RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({"WORLD_SIZE": "two"}, "no number"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "RANK is 2"),
    ],
)
def test_a_launcher_that_says_too_little(variables: dict[str, str], match: str) -> None:
    with pytest.raises(InputError, match=match):
        team_of(timeout=1, environment=variables)


def test_one_process_is_no_team() -> None:
    assert team_of(timeout=1, environment={}) is None
    assert team_of(timeout=1, environment={"WORLD_SIZE": "1", "RANK": "0"}) is None


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    for i in range(CLIPS):
        write_wav(folder / f"{i}.wav", synthetic_speech(0.2 + 0.03 * i, seed=i))
    for i in range(3):
        (folder / f"bad{i}.wav").write_text(f"no audio {i}")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def manifest(recordings: Path, rows: int, bad: list[int]) -> None:
    lines = [
        {"id": f"r{i}", "audio": str(recordings / (f"bad{bad.index(i) % 3}.wav" if i in bad else f"{i % CLIPS}.wav"))}
        | ({"begin_time": 0.001 * (i // CLIPS)} if i not in bad else {})
        for i in range(rows)
    ]
    Path("in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def flags(model: Path, output: str) -> list[str]:
    words = ["in.jsonl", "--output", output, "--model_path", str(model), "--device", "cpu"]
    return [*words, "--max_new_tokens", "12", "--batch_size", "4"]


def rows_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_shards_behind_one_another_are_the_output_of_the_whole(
    folder: Path, recordings: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest(recordings, 23, [4, 17])
    assert main(flags(model, "whole.jsonl")) == 1
    for number in (1, 2, 3):
        assert main([*flags(model, f"part{number}.jsonl"), "--shard", f"{number}/3"]) in (0, 1)
    joined = b"".join(Path(f"part{number}.jsonl").read_bytes() for number in (1, 2, 3))
    assert joined == Path("whole.jsonl").read_bytes()
    assert all(0 < len(rows_of(f"part{number}.jsonl")) < 23 for number in (1, 2, 3))
    # A journal of one shard says nothing wrong to another: rows keep their numbers.
    assert main([*flags(model, "part1.jsonl"), "--shard", "2/3"]) in (0, 1)
    assert Path("part1.jsonl").read_bytes() == Path("part2.jsonl").read_bytes()
    assert main([*flags(model, "no.jsonl"), "--shard", "2/24"]) == 2
    assert "--shard 2/24: the input has 23 rows" in capsys.readouterr().err


def ranks(model: Path, output: str, *more: str, world: int = 2) -> list[subprocess.Popen[str]]:
    """Ranks that no launcher looks after; what they say goes to ``said0`` and so on."""
    variables = os.environ | {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "arkfast", "transcribe", *flags(model, output), *more]
    started = []
    for rank in range(world):
        with Path(f"said{rank}").open("w") as said:
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(subprocess.Popen(command, stdout=said, stderr=said, env=variables | place, text=True))
    return started


def until(ready: Callable[[], bool], processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 200
    while not ready():
        assert all(process.poll() is None for process in processes), [Path(f"said{i}").read_text() for i in range(len(processes))]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def results_in(path: str) -> int:
    return Path(path).read_bytes().count(b'"row":') if Path(path).exists() else 0


@pytest.mark.slow
def test_a_rank_that_is_killed_and_not_restarted_costs_nothing_but_time(folder: Path, recordings: Path, model: Path) -> None:
    bad = sorted(random.Random(7).sample(range(500), 15))
    manifest(recordings, 500, bad)
    assert main(flags(model, "whole.jsonl")) == 1
    expected = Path("whole.jsonl").read_bytes()
    assert len({row["pred_text"] for row in rows_of("whole.jsonl")}) > 5

    started = ranks(model, "out.jsonl", "--rank_timeout", "3")
    until(lambda: all(results_in(f"out.jsonl.journal.rank{rank}") >= 20 for rank in range(2)), started)
    started[1].send_signal(signal.SIGKILL)
    assert started[1].wait() == -signal.SIGKILL
    done_by_1 = results_in("out.jsonl.journal.rank1")
    assert 20 <= done_by_1 < 400
    assert not Path("out.jsonl").exists()
    assert started[0].wait(timeout=200) == 1, Path("said0").read_text()

    assert Path("out.jsonl").read_bytes() == expected
    rows = rows_of("out.jsonl")
    assert len(rows) == 500
    assert [i for i, row in enumerate(rows) if row["status"] == "error"] == bad
    assert all(f"in.jsonl:{i + 1}: " in rows[i]["error"] for i in bad)
    assert not list(folder.glob("out.jsonl.journal.rank*"))
    said = Path("said0").read_text()
    assert "485 of 500 rows transcribed, 15 failed" in said
    record = json.loads(Path("out.jsonl.run.json").read_text())
    assert record["resumed"] == 0
    assert record["audio_seconds"] > 0


@pytest.mark.slow
def test_a_run_whose_ranks_were_all_killed_is_gone_on_with_by_any_number_of_them(folder: Path, recordings: Path, model: Path) -> None:
    manifest(recordings, 160, [3, 100])
    assert main(flags(model, "whole.jsonl")) == 1
    started = ranks(model, "out.jsonl")
    until(lambda: all(results_in(f"out.jsonl.journal.rank{rank}") >= 10 for rank in range(2)), started)
    for process in started:
        process.kill()
        process.wait()
    assert not Path("out.jsonl").exists()
    done = sum(results_in(f"out.jsonl.journal.rank{rank}") for rank in range(2))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "3", "--master_port", str(free_port())]
    again = subprocess.run(
        [*torchrun, "-m", "arkfast", "transcribe", *flags(model, "out.jsonl"), "--allow_failures"],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert again.returncode == 0, again.stderr
    assert f"{done} of 160 rows were done by an earlier run" in again.stderr
    assert again.stdout.count("rows transcribed") == 1, "rank 0 alone has the word"
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert not list(folder.glob("out.jsonl.journal.rank*"))


def test_ranks_and_shards_do_not_go_together(
    folder: Path, recordings: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest(recordings, 3, [])
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main([*flags(model, "out.jsonl"), "--shard", "1/2"]) == 2
    assert "--shard 1/2 is for jobs of one process each" in capsys.readouterr().err
    assert main([*flags(model, "-")]) == 2
    assert "give --output a file" in capsys.readouterr().err
