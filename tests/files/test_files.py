"""One way to write a file: whole or not at all, whatever happens in between, and nothing of an unfinished write left behind."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from file_writers import (
    WRITERS,
    Writer,
    every_writer,
    fill,
    room_for,
    write_by_another,
    write_files,
    write_folder,
    write_rows,
    write_text,
)

from arkfast import files
from arkfast.records import InputError


@pytest.mark.parametrize(
    ("write", "points"),
    [
        (write_text, ["begin page.html", "write .page.html.new", "fsync .page.html.new", "commit page.html", "fsync ROOT"]),
        (write_by_another, ["begin plot.png", "fsync .plot.png.new", "commit plot.png", "fsync ROOT"]),
        (
            write_files,
            [
                *("begin one", "begin two", "begin three", "fsync .one.new", "fsync .two.new", "fsync .three.new"),
                *("commit one", "commit two", "commit three", "fsync a", "fsync b"),
            ],
        ),
        (
            write_rows,
            [
                *("begin clean.jsonl", "begin rejects.jsonl", "write .rejects.jsonl.new", "write .clean.jsonl.new"),
                *("fsync .clean.jsonl.new", "fsync .rejects.jsonl.new", "commit clean.jsonl", "commit rejects.jsonl", "fsync ROOT"),
            ],
        ),
        (write_folder, ["begin best", "fsync model", "fsync shard", "fsync optimizer", "fsync .best.new", "commit best", "fsync ROOT"]),
    ],
)
def test_the_points_of_a_write(tmp_path, disk, monkeypatch, write, points):
    monkeypatch.setattr(files, "_THREADS", 1)  # so that the files of a folder come in order
    write(tmp_path, "old")
    disk.fill(None)
    write(tmp_path, "new")
    seen = [f"{point} {name}".replace(tmp_path.name, "ROOT") for point, name in disk.points]
    assert seen == points


@every_writer
@pytest.mark.parametrize("before", ["old", None])
def test_a_full_disk_at_any_point_changes_nothing(tmp_path, disk, snapshot, write, before):
    if before is not None:
        write(tmp_path, before)
    else:  # folders that are made on the way stay
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
    was = snapshot(tmp_path)

    def attempt():
        try:
            write(tmp_path, "new")
        except InputError as error:
            errors.append(str(error))

    errors: list[str] = []
    points = 0
    for after in disk.at_every_point(attempt):
        assert snapshot(tmp_path) == was, f"after {after} points: {disk.points}"
        points += 1
    assert points == len(errors) >= 4
    said = re.compile(r"/.*: cannot be written \(No space left on device\); make room or give another path, and run again")
    assert all(said.fullmatch(error) for error in errors), errors
    assert {content for name, content in snapshot(tmp_path).items() if content and b"old" in content} == set(), "then there was room"
    assert not list(tmp_path.rglob(".*"))


@every_writer
def test_folders_that_are_missing_are_made_and_fsynced(tmp_path, disk, write):
    write(tmp_path / "deep" / "down", "new")
    assert disk.points.count(("fsync", tmp_path.name)) == disk.points.count(("fsync", "deep")) == 1
    assert list((tmp_path / "deep" / "down").rglob(".*")) == []


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), OSError("no number"), PermissionError(errno.EACCES, "no")])
def test_an_error_of_the_block_is_raised_as_it_is_and_changes_nothing(tmp_path, snapshot, error):
    for write in WRITERS:
        write(tmp_path, "old")
    was = snapshot(tmp_path)

    def fail_files():
        with files.new_files([tmp_path / "a" / "one", tmp_path / "b" / "two"]) as temporaries:
            temporaries[0].write_text("new")
            raise error

    def fail_rows():
        with files.jsonl_files([tmp_path / "clean.jsonl", tmp_path / "rejects.jsonl"]) as write:
            write(0, {"word": "new"})
            raise error

    def fail_folder():
        with files.NewFolder(tmp_path / "best") as folder:
            fill(folder, "new")
            raise error

    for fail in (fail_files, fail_rows, fail_folder):
        with pytest.raises(type(error)) as caught:
            fail()
        assert caught.value is error
        assert snapshot(tmp_path) == was


# Kills. The child ends at once, in the place of a call of the operating system, as a kill between two of them would end it.


def killed(write: Writer, root: Path, after: int) -> bool:
    """Write "new" in a process that dies instead of its call number ``after``, counted from 0; False where it came to its end."""
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        return code == 9
    calls = 0

    def dying(call: Callable[..., object]) -> Callable[..., object]:
        def instead(*arguments: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls > after:
                os._exit(9)
            return call(*arguments, **options)

        return instead

    try:
        for name in ("replace", "link", "fsync", "unlink", "mkdir"):
            setattr(os, name, dying(getattr(os, name)))
        write(root, "new")
    finally:
        os._exit(0)


@every_writer
def test_a_kill_loses_nothing_and_the_next_writer_clears_up(tmp_path, snapshot, write):
    after, aside = 0, False
    while True:
        root = tmp_path / str(after)
        write(root, "old")
        was = snapshot(root)
        new = {name: content and content.replace(b"old", b"new") for name, content in was.items()}
        if not killed(write, root, after):
            assert snapshot(root) == new
            break
        left = snapshot(root)
        visible = {name: content for name, content in left.items() if not any(part.startswith(".") for part in Path(name).parts)}
        missing = was.keys() - visible.keys()
        assert not missing or (write is write_folder and ".best.old" in left), "a folder alone is moved aside for a moment"
        assert all(content in (was[name], new[name]) for name, content in visible.items()), "whole, old or new"
        aside = aside or bool(missing)
        fail_once(write, root)
        assert snapshot(root) == (was if missing else visible), "put back where it was away, and nothing beside it"
        write(root, "new")
        assert snapshot(root) == new
        after += 1
    assert after >= 4
    assert aside == (write is write_folder), "one kill came between the two renames"


def fail_once(write: Writer, root: Path) -> None:
    """A write that begins, fails, and must leave what it found."""

    def full(_path: Path, point: str) -> None:
        if point == "fsync":
            raise OSError(errno.ENOSPC, "No space left on device")

    files.fault = full
    try:
        with pytest.raises(InputError):
            write(root, "never")
    finally:
        files.fault = None


def test_sweep_clears_away_what_kills_left_and_puts_back_what_was_aside(tmp_path, snapshot):
    for name, word in ((".best.new", "half"), (".last.old", "old"), (".ema.old", "old"), ("ema", "new"), (".mine.new", "mine")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").write_text(word)
    (tmp_path / ".state.json.new").write_text("half")
    (tmp_path / ".other.txt").write_text("x")
    files.sweep(tmp_path, re.compile(r"best|last|ema|state\.json"))
    assert {name: content for name, content in snapshot(tmp_path).items() if content} == {
        ".mine.new/model": b"mine", ".other.txt": b"x", "ema/model": b"new", "last/model": b"old",
    }  # fmt: skip
    assert files.leftovers(tmp_path / "run.json") == {tmp_path / f".run.json.{kind}" for kind in ("new", "old", "lock")}


# A disk that is really full, for libraries that write by themselves.


def by_python(folder: Path) -> None:
    (folder / "model").write_bytes(bytes(100_000))


def by_rust(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(100_000)}, folder / "model")


@pytest.mark.parametrize("write", [by_python, by_rust])
def test_a_library_that_meets_a_full_disk_is_one_error_that_names_the_folder(tmp_path, snapshot, write):
    write_folder(tmp_path, "old")
    was = snapshot(tmp_path)
    with room_for(10_000), pytest.raises(InputError, match=r"/best: cannot be written \(File too large\); make room or give another path"):
        files.replace_folder(tmp_path / "best", write)
    assert snapshot(tmp_path) == was


def test_rows_that_meet_a_full_disk_are_one_error(tmp_path, snapshot):
    write_rows(tmp_path, "old")
    was = snapshot(tmp_path)

    def overflow():
        with files.jsonl_files([tmp_path / "clean.jsonl", tmp_path / "rejects.jsonl"]) as write:
            for _ in range(100):
                write(0, {"text": "x" * 3000})

    with room_for(100_000), pytest.raises(InputError, match=r"/clean\.jsonl.*: cannot be written \(File too large\); make room"):
        overflow()
    assert snapshot(tmp_path) == was
