"""The spool: nobody else's to read, gone with its service, and swept away after one that was killed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from arkfast.files.spool import LOCK
from arkfast.records import InputError
from arkfast.serve.spool import PREFIX, Spool

OWNER = """
import sys, time
from pathlib import Path
from arkfast.serve.spool import Spool
spool = Spool(Path(sys.argv[1]))
with spool.folder() as folder:
    (folder / "recording.wav").write_bytes(b"somebody's voice")
    print(spool.path, flush=True)
    time.sleep(600)
"""


def owner(parent: Path) -> subprocess.Popen[str]:
    """A process that has a spool with a recording in it, and prints where."""
    return subprocess.Popen([sys.executable, "-c", OWNER, str(parent)], stdout=subprocess.PIPE, text=True)


def spool_of(process: subprocess.Popen[str]) -> Path:
    assert process.stdout is not None
    return Path(process.stdout.readline().strip())


def test_a_spool_is_private_and_goes_with_its_service(tmp_path: Path):
    spool = Spool(tmp_path / "made")
    assert stat.S_IMODE(spool.path.stat().st_mode) == 0o700
    with spool.folder() as first, spool.folder() as second:
        assert first != second
        (first / "recording.wav").write_bytes(b"x")
    assert [path.name for path in spool.path.iterdir()] == [LOCK]
    spool.close()
    assert list((tmp_path / "made").iterdir()) == []


def test_the_next_service_removes_what_a_killed_one_left_and_nothing_else(tmp_path: Path):
    living, killed = owner(tmp_path), owner(tmp_path)
    try:
        kept, left = spool_of(living), spool_of(killed)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        assert (left / "1" / "recording.wav").exists()
        # What looks like a spool and is none of a dead service: without a lock, a file, and a link to somewhere else.
        (tmp_path / f"{PREFIX}unlocked").mkdir()
        (tmp_path / f"{PREFIX}file").write_text("x")
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / LOCK).write_text("")
        (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "notes").mkdir()
        # A link in what was left behind is removed, and not what it points to.
        (left / "link").symlink_to(tmp_path / "notes")
        own = Spool(tmp_path)
        found = {path.name for path in tmp_path.iterdir()}
        assert found == {kept.name, own.path.name, "elsewhere", "notes", *(f"{PREFIX}{name}" for name in ("unlocked", "file", "link"))}
        assert (kept / "1" / "recording.wav").read_bytes() == b"somebody's voice"
        own.close()
    finally:
        for process in (living, killed):
            process.kill()
            process.wait()


def test_a_file_that_is_added_while_a_folder_goes_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spool, kept = Spool(tmp_path), os.rmdir
    late: list[Path] = []

    def rmdir(path: str, **more: int) -> None:
        if not late:  # a process that hears the recording is between two of its files
            late.append(folder / "late.npy")
            late[0].write_bytes(b"x")
        kept(path, **more)

    with spool.folder() as folder:
        (folder / "0.npy").write_bytes(b"x")
        monkeypatch.setattr(os, "rmdir", rmdir)
    assert late
    assert [path.name for path in spool.path.iterdir()] == [LOCK]
    spool.close()


def test_many_that_start_together_have_a_spool_each(tmp_path: Path):
    owners = [owner(tmp_path) for _ in range(4)]
    try:
        folders = {spool_of(process) for process in owners}
        assert len(folders) == 4
        assert all((folder / "1" / "recording.wav").exists() for folder in folders)
    finally:
        for process in owners:
            process.kill()
            process.wait()


def test_a_folder_where_none_can_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--spool .*file/spool: cannot be made \(Not a directory\)"):
        Spool(tmp_path / "file" / "spool")
    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    with pytest.raises(InputError, match=r"no folder can be made in it \(No space left on device\)"):
        Spool(tmp_path)
