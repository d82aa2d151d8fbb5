"""Recordings and manifests of other machines: fetched within a bound, gone on with after a kill, and no signature in what is said."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import soundfile
from stand_in import make_recordings
from web import Web, served

from arkfast.data import Fields
from arkfast.files import remote
from arkfast.files.remote import address_in, as_path, check_remote, fetch, identity, is_remote, listed, remote_size, scrubbed, shown
from arkfast.infer.command import main
from arkfast.infer.fetching import AHEAD, PREFIX, Fetcher
from arkfast.infer.formats.save import file_names
from arkfast.infer.inputs import input_rows, single_recording, sources
from arkfast.infer.journal import key_of
from arkfast.records import InputError, Utterance
from arkfast.testing import synthetic_speech

SIGNED = "X-Amz-Signature=s3cr3t"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; the spool is made in ``tmp`` there, and faults are waited for a moment only."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.02, 0.03))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_recordings(tmp_path_factory.mktemp("there"))


@pytest.fixture
def web(folder: Path, recordings: Path) -> Iterator[Web]:
    with served(recordings) as found:
        yield found


@pytest.mark.parametrize(
    ("address", "said", "same"),
    [
        ("https://me:pw@host:8/a/b.wav?X-Amz-Signature=1&v=2#f", "https://host:8/a/b.wav?…", "https://host:8/a/b.wav?v=2"),
        ("abfs://part@account/a.wav", "abfs://part@account/a.wav", "abfs://part@account/a.wav"),
        ("s3://key:secret@bucket/a.wav", "s3://bucket/a.wav", "s3://key:secret@bucket/a.wav"),
        ("s3://bucket/a@b.wav", "s3://bucket/a@b.wav", "s3://bucket/a@b.wav"),
        ("https://h/a.wav?sv=1&sig=2&se=3&id=7", "https://h/a.wav?…", "https://h/a.wav?id=7"),
        ("https://h/a.wav#token", "https://h/a.wav?…", "https://h/a.wav"),
        ("/data/a.wav", "/data/a.wav", "/data/a.wav"),
    ],
)
def test_what_an_address_is_called_and_what_it_is_known_by(address: str, said: str, same: str) -> None:
    assert shown(address) == said
    assert identity(address) == same
    assert scrubbed(f"cannot get '{address}', sorry") == f"cannot get '{said}', sorry"


def test_what_is_an_address() -> None:
    assert is_remote("s3://b/a.wav")
    assert not any(map(is_remote, ["/a.wav", "a.wav", "file:///a.wav", "C:/a.wav", "a b://c"]))
    assert address_in(Path("https://h/a.wav?x=1")) == "https://h/a.wav?x=1"
    assert address_in(Path("talks/a.wav")) is None
    assert [str(as_path(given)) for given in ("https://h/a/", "/a//b")] == ["https:/h/a", "/a/b"]


@pytest.mark.parametrize("address", ["zip://a.wav::http://h/b.zip", "simplecache::http://h/a.wav", "ftp://h/a.wav", "local://etc/a.wav"])
def test_kinds_that_are_not_read(address: str) -> None:
    if is_remote(address):
        with pytest.raises(InputError, match="of a kind that is not read"):
            check_remote(address)


def test_what_a_kind_needs_is_named() -> None:
    for address, package in (("s3://b/a.wav", "s3fs"), ("gs://b/a.wav", "gcsfs")):
        with pytest.raises(InputError, match=f"{address}: needs the package {package}, pip install {package}"):
            check_remote(address)


def test_faults_that_pass_are_waited_for_and_others_are_not(web: Web, folder: Path) -> None:
    target = folder / "copy"
    web.failing["/1.wav"] = [503, "cut", 429]
    assert fetch(f"{web.url}/1.wav", target, most=1 << 20) == (web.folder / "1.wav").stat().st_size
    assert target.read_bytes() == (web.folder / "1.wav").read_bytes()
    assert web.asked["/1.wav"] == 4
    target.unlink()
    web.failing["/2.wav"] = [500] * 9
    for name, said, asked in (
        ("2.wav", "the server answers 500", 4), ("none.wav", "there is no such file", 1),
        ("3.wav", "the server refuses it", 1),
    ):  # fmt: skip
        if name == "3.wav":
            web.failing["/3.wav"] = [403]
        with pytest.raises(InputError, match=rf"{web.url}/{name}\?…: {said}") as caught:
            fetch(f"{web.url}/{name}?{SIGNED}", target, most=1 << 20)
        assert "s3cr3t" not in str(caught.value)
        assert web.asked[f"/{name}"] == asked
        assert not target.exists()


def test_a_server_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"http://127.0.0.1:9/a.wav\?…: cannot be reached") as caught:
        fetch(f"http://127.0.0.1:9/a.wav?{SIGNED}", folder / "copy", most=100)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://h/a.wav"])
def test_no_server_leads_to_another_kind_of_address(web: Web, folder: Path, target: str) -> None:
    web.moved["/moved.wav"] = target
    with pytest.raises(InputError, match=r"leads on from http:// to (file|ftp)://, which is not followed"):
        fetch(f"{web.url}/moved.wav", folder / "copy", most=1 << 20)
    assert web.asked["/moved.wav"] == 1
    web.moved["/moved.wav"] = f"{web.url}/1.wav"
    assert fetch(f"{web.url}/moved.wav", folder / "copy", most=1 << 20) > 1000


def test_what_is_too_large_is_not_read(web: Web, folder: Path) -> None:
    size = (web.folder / "1.wav").stat().st_size
    assert remote_size(f"{web.url}/1.wav") == size
    with pytest.raises(InputError, match=rf"has {size} bytes, over the limit of 100"):
        fetch(f"{web.url}/1.wav", folder / "copy", most=100)
    web.unsized = True
    assert remote_size(f"{web.url}/1.wav") is None
    with pytest.raises(InputError, match="has more than 100 bytes"):
        fetch(f"{web.url}/1.wav", folder / "copy", most=100)
    assert not (folder / "copy").exists()
    assert fetch(f"{web.url}/1.wav", folder / "copy", most=size) == size


@dataclass
class Row:
    wanted: str | None


def spool_bytes(folder: Path) -> int:
    total = 0
    for spool in folder.glob(f"tmp/{PREFIX}*"):
        for name in os.listdir(spool):
            with suppress(FileNotFoundError):  # it is gone by now
                total += (spool / name).stat().st_size if name.endswith(".bin") else 0
    return total


def test_the_spool_holds_no_more_than_it_may_and_is_emptied(folder: Path) -> None:
    there = folder / "there"
    there.mkdir()
    sizes = [random.Random(i).randrange(50_000, 400_000) for i in range(40)]
    for i, size in enumerate(sizes):
        (there / f"{i}.bin").write_bytes(bytes([i]) * size)
    (there / "big.bin").write_bytes(b"b" * 1_000_001)
    most, stop = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not stop.wait(0.002):
            with suppress(FileNotFoundError):  # the spool itself, at the end
                most = max(most, spool_bytes(folder))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with served(there) as web, Fetcher(1) as fetcher:
        names = [f"{i}.bin" for i in range(40)]
        names[20:20] = ["big.bin", "none.bin"]
        rows = [Row(f"{web.url}/{name}") for name in names]
        rows.insert(7, Row(None))
        held: list[str] = []
        got = fetcher.ahead(rows)
        for number, row in enumerate(rows):
            # Rows stay under way for as long as the next one can be had without their end.
            deadline = time.monotonic() + 0.3
            while held and not fetcher.ready() and time.monotonic() < deadline:
                time.sleep(0.005)
            while held and not fetcher.ready():
                fetcher.done(held.pop(0))
            found, copy = next(got)
            assert found is row
            if row.wanted is None:
                assert copy is None
            elif "big" in row.wanted:
                assert isinstance(copy, InputError)
                assert "has 1000001 bytes, over the limit of 1000000; --spool_mb 2 takes it" in str(copy)
            elif "none" in row.wanted:
                assert isinstance(copy, InputError)
                assert "there is no such file" in str(copy)
            else:
                assert isinstance(copy, str), number
                content = Path(copy).read_bytes()
                index = int(row.wanted.rpartition("/")[2].removesuffix(".bin"))
                assert content == bytes([index]) * sizes[index]
                held.append(copy)
        assert next(got, None) is None
        for copy in held:
            fetcher.done(copy)
        assert spool_bytes(folder) == 0
    stop.set()
    watcher.join()
    assert 400_000 < most <= 1_000_000
    assert not list((folder / "tmp").iterdir())


def test_recordings_of_unknown_size_have_a_part_of_the_spool_each(web: Web, folder: Path) -> None:
    web.unsized = True
    (web.folder / "long.bin").write_bytes(b"x" * 130_000)
    try:
        with Fetcher(1) as fetcher:
            got = list(fetcher.ahead([Row(f"{web.url}/1.wav"), Row(f"{web.url}/long.bin")]))
            assert isinstance(got[0][1], str)
            assert isinstance(got[1][1], InputError)
            assert "has more than 125000 bytes, which is the limit, since nobody says its size; a larger --spool_mb" in str(got[1][1])
    finally:
        (web.folder / "long.bin").unlink()


def test_rows_are_not_read_far_ahead_and_a_broken_off_run_stops_its_threads(web: Web) -> None:
    read = 0

    def rows() -> Iterator[Row]:
        nonlocal read
        while True:
            read += 1
            yield Row(f"{web.url}/1.wav")

    web.pause = 0.05
    with Fetcher(1) as fetcher:
        got = fetcher.ahead(rows())
        next(got)
        assert read <= AHEAD + 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("arkfast-fetch")]


def test_a_signature_is_no_part_of_what_a_row_is_known_by() -> None:
    one, other, third = (
        key_of(Utterance(id="a", audio=f"https://h/a.wav?{query}")) for query in ("id=1&sig=2", "id=1&sig=3", "id=2&sig=2")
    )
    assert one == other != third


def test_folders_patterns_and_braces_elsewhere(folder: Path) -> None:
    there = fsspec.filesystem("memory")
    for name in ("a/2.wav", "a/1.flac", "a/notes.txt", "a/.hidden.wav", "b/m1.jsonl", "b/m2.jsonl"):
        there.pipe(f"/store/{name}", b"{}")
    try:
        assert sources(Path("memory://store/a")) == ["memory://store/a/1.flac", "memory://store/a/2.wav"]
        assert sources(Path("memory://store/a/*.wav")) == ["memory://store/a/.hidden.wav", "memory://store/a/2.wav"]
        assert sources(Path("memory://store/b/m{1,2}.jsonl")) == ["memory://store/b/m1.jsonl", "memory://store/b/m2.jsonl"]
        assert listed("memory://store/b/m1.jsonl") == []
        rows = list(input_rows([Path("memory://store/a")], fields=Fields(remote=True)))
        assert [(row.default_id, row.utterance and row.utterance.audio) for row in rows] == [
            ("1.flac", "memory://store/a/1.flac"), ("2.wav", "memory://store/a/2.wav"),
        ]  # fmt: skip
        for path, said in (("memory://store/b", "is a folder without recordings"), ("memory://store/z*", "no file matches")):
            with pytest.raises(InputError, match=said):
                sources(Path(path))
    finally:
        there.rm("/store", recursive=True)
    with pytest.raises(InputError, match="is a tar file of another machine"):
        list(input_rows(Path("http://127.0.0.1:9/a.tar"), fields=Fields(remote=True)))


def test_rows_of_a_manifest_elsewhere_start_at_its_folder(web: Web, folder: Path) -> None:
    lines = [{"audio": "1.wav"}, {"audio": "sub/2?.wav"}, {"audio": "s3://b/a.wav"}, {"audio": "ftp://h/x?key=s3cr3t"}, {"text": "none"}]
    lines.append({"audio": "a.tar::b.wav"})
    web.wanted = SIGNED
    (web.folder / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "no json\n")
    try:
        given = Path(f"{web.url}/m.jsonl?{SIGNED}")
        rows = [*input_rows(given, fields=Fields(remote=True)), *input_rows(given, fields=Fields(remote=True))]
    finally:
        (web.folder / "m.jsonl").unlink()
    assert web.asked["/m.jsonl"] == 1, "it is fetched once"
    rows = rows[: len(rows) // 2]
    assert [row.default_id for row in rows] == [f"m.jsonl:{i}" for i in range(1, 8)]
    assert [row.utterance and row.utterance.audio for row in rows[:2]] == [f"{web.url}/1.wav", f"{web.url}/sub/2%3F.wav"]
    assert [row.utterance and row.utterance.where for row in rows[:2]] == [f"{web.url}/m.jsonl?…:1", f"{web.url}/m.jsonl?…:2"]
    assert "needs the package s3fs" in str(rows[2].error)
    assert "ftp://h/x?…: is an address of a kind that is not read" in str(rows[3].error)
    assert f"'{web.url}/a.tar::b.wav' is in a tar file of another machine" in str(rows[5].error)
    assert str(rows[6].error).startswith(f"{web.url}/m.jsonl?…:7: not valid JSON")
    assert not any("s3cr3t" in str(row.error) for row in rows)


def test_training_and_the_like_do_not_fetch() -> None:
    from arkfast.data.rows import RowError, to_utterance

    with pytest.raises(RowError, match=r"'https://h/a.wav\?…' is an address, not a path"):
        to_utterance({"audio": f"https://h/a.wav?{SIGNED}"}, where="m:1", default_id="a", folder=None)


def flags(model: Path, *more: str) -> list[str]:
    return [*more, "--model_path", str(model), "--device", "cpu", "--max_new_tokens", "12", "--batch_size", "4"]


def write(path: str, lines: list[dict[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines))


def rows_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_is_fetched_is_transcribed_as_what_lies_here_and_no_signature_is_told(
    web: Web, folder: Path, model: Path, workers: str, capfd: pytest.CaptureFixture[str]
) -> None:
    names = [f"{i % 10}.wav" for i in range(24)]
    names[3], names[9] = "bad1.wav", "none.wav"
    write("here.jsonl", [{"id": str(i), "audio": str(web.folder / name)} for i, name in enumerate(names)])
    write("there.jsonl", [{"id": str(i), "audio": f"{web.url}/{name}?{SIGNED}"} for i, name in enumerate(names)])
    web.wanted = SIGNED
    assert main(flags(model, "here.jsonl", "--output", "here.out", "--num_workers", workers)) == 1
    capfd.readouterr()
    assert main(flags(model, "there.jsonl", "--output", "there.out", "--num_workers", workers, "--spool_mb", "1")) == 1
    said = capfd.readouterr()
    here, there = rows_of("here.out"), rows_of("there.out")
    assert len({row["pred_text"] for row in here}) > 5
    for mine, theirs in zip(here, there, strict=True):
        assert {**mine, "audio": 0, "error": 0} == {**theirs, "audio": 0, "error": 0}
    assert there[0]["audio"] == f"{web.url}/0.wav?{SIGNED}", "a field of the input stays as it was given"
    assert there[3]["error"].startswith(f"there.jsonl:4: {web.url}/bad1.wav?…: not audio")
    assert there[9]["error"] == f"there.jsonl:10: {web.url}/none.wav?…: there is no such file"
    told = [said.out, said.err, *(row.get("error", "") for row in there)]
    told += [Path(f"there.out{kind}").read_text() for kind in (".run.json", ".journal")]
    assert not any("s3cr3t" in text for text in told)
    assert not list((folder / "tmp").iterdir())

    # Signed anew, the rows are known.
    web.wanted, before = "X-Amz-Signature=other", dict(web.asked)
    write("there.jsonl", [{"id": str(i), "audio": f"{web.url}/{name}?{web.wanted}"} for i, name in enumerate(names)])
    assert main(flags(model, "there.jsonl", "--output", "there.out", "--num_workers", workers)) == 1
    assert dict(web.asked) == before, "nothing was fetched"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_long_recordings_of_which_the_spool_holds_one_are_cut_as_those_that_lie_here(folder: Path, model: Path, workers: str) -> None:
    there = folder / "there"
    there.mkdir()
    for i in range(3):
        speech = np.repeat(synthetic_speech(3.0, seed=i), 4)  # 64 kHz
        soundfile.write(there / f"{i}.wav", np.stack([speech, speech], 1), 64000, subtype="PCM_16")
    soundfile.write(there / "quiet.wav", np.zeros((190_000, 2)), 64000, subtype="PCM_16")
    assert all(500_000 < path.stat().st_size < 1_000_000 for path in there.iterdir())
    names = ["0.wav", "1.wav", "quiet.wav", "2.wav", "0.wav"]
    more = ["--max_audio_seconds", "1", "--num_workers", workers]
    with served(there) as web:
        write("here.jsonl", [{"id": str(i), "audio": str(there / name)} for i, name in enumerate(names)])
        write("there.jsonl", [{"id": str(i), "audio": f"{web.url}/{name}"} for i, name in enumerate(names)])
        assert main(flags(model, "here.jsonl", "--output", "here.out", *more)) == 0
        assert main(flags(model, "there.jsonl", "--output", "there.out", *more, "--spool_mb", "1")) == 0
    here, there_rows = rows_of("here.out"), rows_of("there.out")
    assert [len(row.get("segments", [])) >= 3 for row in here] == [True, True, False, True, True]
    for mine, theirs in zip(here, there_rows, strict=True):
        assert {**mine, "audio": 0} == {**theirs, "audio": 0}


def test_files_of_recordings_elsewhere_are_called_after_their_paths() -> None:
    assert file_names([f"https://h/a/talk.mp3?{SIGNED}.x", "s3://b/talk two.wav"]) == ["talk", "talk two"]
    one, other = file_names(["https://h/a/talk.mp3?sig=1.2", "https://h/b/talk.mp3?sig=1.2"])
    assert one != other
    assert one == file_names(["https://h/a/talk.mp3?sig=3", "https://h/b/talk.mp3?sig=4"])[0]


def test_a_single_recording_elsewhere_is_printed(web: Web, folder: Path, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert single_recording(Path(f"{web.url}/1.wav?x=1")) is not None
    assert main(flags(model, f"{web.url}/1.wav")) == 0
    there = capfd.readouterr().out
    assert main(flags(model, str(web.folder / "1.wav"))) == 0
    assert there == capfd.readouterr().out != ""


def test_a_dry_run_asks_for_sizes_and_fetches_nothing(web: Web, folder: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [(web.folder / f"{i}.wav").stat().st_size for i in range(3)]
    more = [{"duration": 0.5}, {"begin_time": 0, "end_time": 0.2}, {}, {}]
    lines = [{"audio": f"{web.url}/{name}.wav", **fields} for name, fields in zip(["0", "1", "2", "none"], more, strict=True)]
    write("in.jsonl", [*lines, {"audio": str(web.folder / "4.wav")}])
    assert main(flags(model, "in.jsonl", "--dry_run", "--run_record", "-")) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["bad"], found["elsewhere"], found["elsewhere_unmeasured"]) == (5, 1, 3, 1)
    assert (found["elsewhere_bytes"], found["elsewhere_unsized"]) == (sum(sizes), 0)
    assert found["audio_seconds"] == pytest.approx(0.5 + 0.2 + 0.32, abs=1e-3)
    assert "/none.wav: there is no such file" in found["reasons"][0]
    assert not web.asked["/0.wav"]
    assert main(flags(model, "in.jsonl", "--dry_run")) == 1
    table = capsys.readouterr().out
    assert "3 rows with" in table
    assert "not counted     1 of these rows" in table
    (web.folder / "large.wav").write_bytes(bytes(1_200_000))
    try:
        write("in.jsonl", [{"audio": f"{web.url}/large.wav"}, {"audio": f"{web.url}/1.wav"}])
        assert main(flags(model, "in.jsonl", "--dry_run", "--spool_mb", "1")) == 1
    finally:
        (web.folder / "large.wav").unlink()
    assert "large.wav: has 1200000 bytes, over the limit of 1000000; --spool_mb 2 takes it" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_over_the_web_that_is_killed_is_gone_on_with_and_leaves_no_spool(folder: Path, recordings: Path, model: Path) -> None:
    bad = [11, 70]
    names = [f"bad{i % 3}.wav" if i in bad else f"{i % 10}.wav" for i in range(120)]
    with served(recordings) as web:
        write("in.jsonl", [{"id": f"r{i}", "audio": f"{web.url}/{name}?{SIGNED}"} for i, name in enumerate(names)])
        assert main(flags(model, "in.jsonl", "--output", "whole.jsonl")) == 1
        command = [sys.executable, "-m", "arkfast", "transcribe", *flags(model, "in.jsonl", "--output", "out.jsonl")]
        web.pause = 0.8  # so that a run lasts, however late whoever kills it comes
        for least in (1, 50):
            process = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(folder / "tmp")}, stderr=subprocess.PIPE, text=True)
            journal, deadline = Path("out.jsonl.journal"), time.monotonic() + 120
            try:
                while not journal.exists() or journal.read_bytes().count(b'"row":') < least:
                    assert process.poll() is None, process.communicate()[1]
                    assert time.monotonic() < deadline
                    time.sleep(0.005)
            finally:
                process.kill()
                process.wait()
        done = journal.read_bytes().count(b'"row":')
        assert 50 <= done < 120
        assert list((folder / "tmp").glob(f"{PREFIX}*")), "a kill leaves the spool behind"
        web.asked.clear()
        web.pause = 0.0
        again = subprocess.run(command, env=os.environ | {"TMPDIR": str(folder / "tmp")}, capture_output=True, text=True, check=False)
        assert again.returncode == 1, again.stderr
        assert web.asked.total() == 120 - done
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert [i for i, row in enumerate(rows_of("out.jsonl")) if row["status"] == "error"] == bad
    assert "s3cr3t" not in again.stderr
    assert not list((folder / "tmp").glob(f"{PREFIX}*")), "and the next run removes it"
