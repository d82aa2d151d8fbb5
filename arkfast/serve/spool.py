"""Uploads and features while a request is worked on: a folder for each, gone when the request is."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arkfast.files import Lock, LockHeld, make_folder
from arkfast.records import InputError

log = logging.getLogger("arkfast.serve")

PREFIX, LOCK = "arkfast-serve-", ".lock"
_ATTEMPTS = 100


class Spool:
    """A folder that only this service uses, and that nobody else on the machine can read.

    It is locked for as long as the service lives. What a service that was killed has left beside it is removed: its lock has no owner.

    Args:
        parent: where it is made; None takes the system's temporary folder.

    Raises:
        InputError: it cannot be made there.
    """

    def __init__(self, parent: Path | None) -> None:
        if parent is not None:
            make_folder(parent)
        self._parent = Path(tempfile.gettempdir()) if parent is None else parent
        self._own, self._lock = self._made()
        self._numbers = itertools.count(1)
        for folder in sorted(self._parent.glob(f"{PREFIX}*")):
            if folder.name != self.path.name and _removed(folder):
                log.warning("removed the spool of a service that was killed: %s", folder.name)

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self._own.name)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A new folder in it, for as long as the block lasts."""
        path = self.path / str(next(self._numbers))
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Remove it with all that is in it."""
        self._lock.release()
        self._own.cleanup()

    def _made(self) -> tuple[tempfile.TemporaryDirectory[str], Lock]:
        for _ in range(_ATTEMPTS):
            try:
                own = tempfile.TemporaryDirectory(prefix=PREFIX, dir=self._parent, ignore_cleanup_errors=True)
            except OSError as error:
                raise InputError(f"--spool {self._parent}: no folder can be made in it ({error.strerror}); give another") from error
            lock = Lock(Path(own.name) / LOCK, target=Path(own.name))
            try:
                lock.acquire()
            except (LockHeld, FileNotFoundError):  # another service that starts took it for a leftover before it was locked
                own.cleanup()
            else:
                return own, lock
        raise InputError(f"--spool {self._parent}: other services remove every folder that is made in it; give another")


def _removed(folder: Path) -> bool:
    """Remove a spool of this user whose service is dead; whether it was one."""
    try:
        if folder.is_symlink() or folder.stat().st_uid != os.getuid() or not (folder / LOCK).exists():
            return False
        with Lock(folder / LOCK, target=folder):
            # The lock goes last: what cannot be removed now stays for the next start to find.
            for each in folder.iterdir():
                if each.name != LOCK:
                    shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
        folder.rmdir()
    except (LockHeld, OSError):  # its service lives, or another one is removing it
        return False
    return True
