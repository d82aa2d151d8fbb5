"""A lock that says who works on a file or folder: host, process and since when.

Two runs that write one output would spoil each other's work. Each takes the lock first, and the second stops at once and names the first::

    with Lock(output.with_name(f".{output.name}.lock"), target=output):
        ...

The lock is a small file. While it is held, the operating system locks that file for the process (flock), and its time is renewed every
few seconds. A process that dies leaves the file behind, and the next one takes it over:

- On the same host the operating system's lock decides: it goes with the process, however that ends.
- A lock of another host counts as held while its file was renewed in the last minute, because some network file systems keep the
  operating system's locks to each host. After a crash of that host the next run begins a minute later.
- Where the file system has no such locks at all, the last minute decides for every host. Two runs that begin within a fifth of a second
  of each other are told apart by what stands in the file when both have written.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

from arkfast.records import InputError

if sys.platform != "win32":
    import fcntl

RENEWED_SECONDS = 15.0
"""How often the file's time is renewed."""
STALE_SECONDS = 60.0
"""A lock that was not renewed for so long has no owner any more, where the operating system cannot say."""
_SETTLED_SECONDS = 0.2  # until all who write at the same moment have written
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}  # file systems without flock
_MOST_BYTES = 10_000  # of a lock file

_held: dict[str, Lock] = {}  # of this process, by path


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who holds a lock."""

    host: str
    """The machine's name."""
    process: int
    """The process's number there."""
    started: str
    """When the lock was taken, in UTC, as ``2026-01-31 09:00:00``."""
    command: str
    """What the process runs, as a user would call it."""

    def __str__(self) -> str:
        what = f" ({self.command})" if self.command else ""
        return f"process {self.process} on {self.host}{what}, since {self.started} UTC"


class LockHeld(InputError):
    """Another run holds the lock. The message names what is locked and the owner; ``owner`` is None where the file does not say."""

    def __init__(self, message: str, owner: Owner | None) -> None:
        super().__init__(message)
        self.owner = owner


class Lock:
    """A lock on what is to be written. As a block it is held for as long as the block lasts.

    Args:
        path: the lock's own file, in a folder that is there.
        target: what is locked, as errors name it.
        advice: what a user can do, as errors end.
    """

    def __init__(self, path: Path, *, target: Path, advice: str = "let it end, or give another path") -> None:
        self.path, self._target, self._advice = path.absolute(), target, advice
        self._descriptor: int | None = None
        self._ended = threading.Event()

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            LockHeld: another run, or another part of this process, holds it.
            OSError: the system refuses to write the file.
        """
        if (other := _held.get(str(self.path))) is not None:
            raise self._refused(other._read())
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
            try:
                if self._take(descriptor):
                    break
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # its owner has just removed it: there is a new file to open, or none yet
        self._descriptor = descriptor
        _held[str(self.path)] = self
        self._ended = threading.Event()
        threading.Thread(target=self._renew, args=(self._ended,), name="arkfast-lock", daemon=True).start()

    def release(self) -> None:
        """Give the lock back, and remove its file. A lock that is not held stays as it is."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        self._ended.set()
        _held.pop(str(self.path), None)
        if os.name == "nt":  # Windows removes no file that is open
            os.close(descriptor)
        with contextlib.suppress(OSError):
            self.path.unlink()
        if os.name != "nt":
            os.close(descriptor)

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def _take(self, descriptor: int) -> bool:
        """Whether the open file is ours now; False where it is no longer the one at the path."""
        locked = _lock(descriptor)
        if locked is False:
            raise self._refused(_owner(descriptor))
        if not self._is_at_path(descriptor):
            return False
        owner = _owner(descriptor)
        here = owner is not None and owner.host == socket.gethostname()
        if owner is not None and not (locked and here) and (age := time.time() - os.fstat(descriptor).st_mtime) < STALE_SECONDS:
            wait = f"it gave a sign of life {max(age, 0.0):.0f} s ago; where it was killed, wait a minute, or remove {self.path}"
            raise self._refused(owner, wait)
        ours = Owner(
            host=socket.gethostname(),
            process=os.getpid(),
            started=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S"),
            command=_command(),
        )
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(asdict(ours)).encode() + b"\n")
        if locked is None:
            time.sleep(_SETTLED_SECONDS)
            if _owner(descriptor) != ours:
                raise self._refused(_owner(descriptor))
        return True

    def _is_at_path(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def _read(self) -> Owner | None:
        return None if self._descriptor is None else _owner(self._descriptor)

    def _refused(self, owner: Owner | None, hint: str = "") -> LockHeld:
        who = "another process" if owner is None else str(owner)
        return LockHeld(f"{self._target}: is being written by another run, {who}; {hint or self._advice}", owner)

    def _renew(self, ended: threading.Event) -> None:
        while not ended.wait(RENEWED_SECONDS):
            with contextlib.suppress(OSError):  # a file server that is away for a while
                os.utime(self.path)

    def _forget(self) -> None:
        """In a forked child: the lock is the parent's alone, and ends with it although the child goes on."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _command() -> str:
    """What this process was started as: the program's name and its first word."""
    if not sys.argv or not sys.argv[0]:
        return ""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return " ".join((name, *sys.argv[1:2]))


def _lock(descriptor: int) -> bool | None:
    """Lock the open file for this process: True, False where another process has it, None where the system has no such locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _owner(descriptor: int) -> Owner | None:
    """Who stands in the file; None where nobody does, or where it cannot be read."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        found = json.loads(os.read(descriptor, _MOST_BYTES))
        return Owner(host=str(found["host"]), process=int(found["process"]), started=str(found["started"]), command=str(found["command"]))
    except (ValueError, TypeError, KeyError):
        return None


def _after_fork() -> None:
    for lock in _held.values():
        lock._forget()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
