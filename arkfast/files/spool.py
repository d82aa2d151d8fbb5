"""A folder for files that live as long as their process: nobody else's to read, and swept away by the next one where a kill left it.

The folder is locked while its owner lives, so that what a killed process left beside it is told from what is in use.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from arkfast.files import make_folder
from arkfast.files.lock import Lock, LockHeld
from arkfast.records import InputError

LOCK = ".lock"
_ATTEMPTS = 100


class Spool:
    """A folder that only this process uses, and that nobody else on the machine can read.

    Args:
        parent: where it is made; None takes the system's temporary folder.
        prefix: how its name begins. Folders beside it whose names begin so and whose lock has no owner are removed.
        flag: what errors say decides its place.
        removed: is told the name of each folder that was removed.

    Raises:
        InputError: it cannot be made there.
    """

    def __init__(self, parent: Path | None, *, prefix: str, flag: str, removed: Callable[[str], None] = lambda name: None) -> None:
        if parent is not None:
            try:
                make_folder(parent)
            except OSError as error:
                raise InputError(f"{flag} {parent}: cannot be made ({error.strerror}); give another") from error
        self._parent = Path(tempfile.gettempdir()) if parent is None else parent
        self._prefix, self._flag = prefix, flag
        self._own, self._lock = self._made()
        for folder in sorted(self._parent.glob(f"{prefix}*")):
            if folder.name != self.path.name and _removed(folder):
                removed(folder.name)

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self._own.name)

    def close(self) -> None:
        """Remove it with all that is in it."""
        self._lock.release()
        self._own.cleanup()

    def _made(self) -> tuple[tempfile.TemporaryDirectory[str], Lock]:
        for _ in range(_ATTEMPTS):
            try:
                own = tempfile.TemporaryDirectory(prefix=self._prefix, dir=self._parent, ignore_cleanup_errors=True)
            except OSError as error:
                raise InputError(f"{self._flag} {self._parent}: no folder can be made in it ({error.strerror}); give another") from error
            lock = Lock(Path(own.name) / LOCK, target=Path(own.name))
            try:
                lock.acquire()
            except (LockHeld, FileNotFoundError):  # another process that starts took it for a leftover before it was locked
                own.cleanup()
            else:
                return own, lock
        raise InputError(f"{self._flag} {self._parent}: other processes remove every folder that is made in it; give another")


def _removed(folder: Path) -> bool:
    """Remove a spool of this user whose owner is dead; whether it was one."""
    try:
        if folder.is_symlink() or folder.stat().st_uid != os.getuid() or not (folder / LOCK).exists():
            return False
        with Lock(folder / LOCK, target=folder):
            # The lock goes last: what cannot be removed now stays for the next start to find.
            for each in folder.iterdir():
                if each.name != LOCK:
                    shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
        folder.rmdir()
    except (LockHeld, OSError):  # its owner lives, or another one is removing it
        return False
    return True
