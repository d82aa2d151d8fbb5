"""Ways to write through ``arkfast.files``, a log of what was fsynced and renamed, and a disk with little room, for its tests."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arkfast import files

# The ways to write. Each takes a folder and a word, and writes files or folders of that folder that hold the word.


def write_text(root: Path, word: str) -> None:
    files.write_text(root / "page.html", word)


def write_by_another(root: Path, word: str) -> None:
    with files.new_file(root / "plot.png") as temporary:
        temporary.write_bytes(word.encode())


def write_files(root: Path, word: str) -> None:
    with files.new_files([root / "a" / "one", root / "b" / "two", root / "a" / "three"]) as temporaries:
        for temporary in temporaries:
            temporary.write_text(word)


def write_rows(root: Path, word: str) -> None:
    with files.jsonl_files([root / "clean.jsonl", root / "rejects.jsonl"]) as write:
        write(1, {"word": word})
        write(0, {"word": word})


def fill(folder: Path, word: str) -> None:
    (folder / "model").write_text(word)
    (folder / "optimizer").mkdir()
    (folder / "optimizer" / "shard").write_text(word)


def write_folder(root: Path, word: str) -> None:
    files.replace_folder(root / "best", lambda folder: fill(folder, word))


WRITERS = [write_text, write_by_another, write_files, write_rows, write_folder]
Writer = Callable[[Path, str], None]
every_writer = pytest.mark.parametrize("write", WRITERS)


class Calls:
    """The calls that matter, in order: which file or folder was fsynced, what got a new name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[str, int | str]] = []
        fsync, replace = os.fsync, os.replace

        def seen_fsync(descriptor: int) -> None:
            fsync(descriptor)
            self.made.append(("fsync", os.fstat(descriptor).st_ino))

        def seen_replace(source: Path, target: Path) -> None:
            replace(source, target)
            self.made.append(("replace", target.name))

        monkeypatch.setattr(os, "fsync", seen_fsync)
        monkeypatch.setattr(os, "replace", seen_replace)

    def before(self, name: str) -> set[int | str]:
        """What was fsynced before ``name`` was given."""
        return {what for call, what in self.made[: self.made.index(("replace", name))] if call == "fsync"}

    def after(self, name: str) -> set[int | str]:
        """What was fsynced after ``name`` was given."""
        return {what for call, what in self.made[self.made.index(("replace", name)) :] if call == "fsync"}


def inode(path: Path) -> int:
    return path.stat().st_ino


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process grows beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
