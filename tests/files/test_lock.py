"""A lock with an owner: one run at a time, the second one told who the first is, and no lock outlives its process."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arkfast.files import lock as module
from arkfast.files.lock import Lock, LockHeld

HOLD = """
import sys, time
from pathlib import Path
from arkfast.files.lock import Lock
with Lock(Path(sys.argv[1]), target=Path("out.jsonl")):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_run(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its standard input ends."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def taken(path: Path) -> bool:
    try:
        with Lock(path, target=Path("out.jsonl")):
            return True
    except LockHeld:
        return False


def write_owner(path: Path, *, host: str, age: float = 0.0) -> None:
    path.write_text(json.dumps({"host": host, "process": 4321, "started": "2026-01-31 09:00:00", "command": "arkfast transcribe"}))
    os.utime(path, (time.time() - age,) * 2)


def test_the_second_run_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    path = tmp_path / ".out.jsonl.lock"
    with another_run(path) as process:
        with pytest.raises(LockHeld) as caught, Lock(path, target=Path("out.jsonl")):
            pass
        assert caught.value.owner is not None
        assert (caught.value.owner.process, caught.value.owner.host) == (process.pid, socket.gethostname())
        said = f"out.jsonl: is being written by another run, process {process.pid} on {socket.gethostname()} (-c {path}), since 2"
        assert str(caught.value).startswith(said)
        assert str(caught.value).endswith(" UTC; let it end, or give another path")
        assert path.exists(), "it is the other's"
        process.communicate("", timeout=60)
    assert list(tmp_path.iterdir()) == []
    assert taken(path)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with another_run(path) as process:
        assert not taken(path)
        process.kill()
        process.wait()
        assert path.exists()
        assert taken(path)


def test_a_child_that_outlives_its_parent_does_not_hold_the_lock(tmp_path: Path) -> None:
    path, (read, write), (ready, tell) = tmp_path / "lock", os.pipe(), os.pipe()
    lock = Lock(path, target=path)
    lock.acquire()
    child = os.fork()
    if not child:
        os.close(write)
        os.write(tell, b"forked")
        os.read(read, 1)  # until the parent has looked
        os._exit(0)
    try:
        os.read(ready, 10)
        assert lock._descriptor is not None
        os.close(lock._descriptor)  # as a kill of this process would
        module._held.clear()
        assert taken(path)
    finally:
        lock._descriptor = None
        lock._ended.set()
        os.close(write)
        os.waitpid(child, 0)
        for descriptor in (read, ready, tell):
            os.close(descriptor)


def test_one_process_cannot_take_a_lock_twice(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with Lock(path, target=path) as lock:
        with pytest.raises(LockHeld, match=f"process {os.getpid()} on "), Lock(path, target=path):
            pass
        assert path.exists()
        lock.release()
        lock.release()
        assert taken(path)
    assert not path.exists()


@pytest.mark.parametrize(("age", "free"), [(0.0, False), (50.0, False), (70.0, True)])
def test_a_lock_of_another_host_is_free_when_it_gives_no_sign_of_life(tmp_path: Path, age: float, free: bool) -> None:
    path = tmp_path / "lock"
    write_owner(path, host="elsewhere", age=age)
    assert taken(path) == free
    assert path.exists() != free
    if not free:
        with pytest.raises(
            LockHeld, match=r"process 4321 on elsewhere \(arkfast transcribe\), since 2026-01-31 09:00:00 UTC; it gave a sig"
        ):
            Lock(path, target=path).acquire()


def test_signs_of_life_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEWED_SECONDS", 0.01)
    path = tmp_path / "lock"
    with Lock(path, target=path):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 60
        while path.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "elsewhere"}', "\0" * 50])
def test_a_file_that_names_nobody_is_no_lock(tmp_path: Path, content: str) -> None:
    path = tmp_path / "lock"
    path.write_text(content)
    assert taken(path)


@pytest.mark.parametrize("host", ["here", "elsewhere"])
def test_without_locks_of_the_file_system_signs_of_life_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(module.fcntl, "flock", unsupported)
    monkeypatch.setattr(module, "_SETTLED_SECONDS", 0.0)
    path = tmp_path / "lock"
    write_owner(path, host=socket.gethostname() if host == "here" else host)
    assert not taken(path)
    write_owner(path, host=socket.gethostname() if host == "here" else host, age=70)
    assert taken(path)
    assert taken(path)


def test_of_many_that_begin_at_once_one_holds_at_a_time(tmp_path: Path) -> None:
    """Each of four processes takes the lock over and over, and would see the mark of another that holds it too."""
    source = """
import os, sys, time
from pathlib import Path
from arkfast.files.lock import Lock, LockHeld
path, mark = Path(sys.argv[1]), Path(sys.argv[2])
taken = 0
end = time.monotonic() + 60
while taken < 20 and time.monotonic() < end:
    try:
        with Lock(path, target=path):
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            os.unlink(mark)
            taken += 1
    except LockHeld:
        pass
sys.exit(taken != 20)
"""
    runs = [subprocess.Popen([sys.executable, "-c", source, str(tmp_path / "lock"), str(tmp_path / "mark")]) for _ in range(4)]
    assert [run.wait(timeout=100) for run in runs] == [0] * 4
    assert list(tmp_path.iterdir()) == []
