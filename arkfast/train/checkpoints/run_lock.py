"""The lock on a run's folder: one run writes there, and the second one is told who the first is before it reads or loads anything."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from arkfast.files import make_folder, naming
from arkfast.files.lock import STALE_SECONDS, Lock, LockHeld
from arkfast.train.checkpoints.run_folder import check_folder, lock_file
from arkfast.train.config import TrainConfig
from arkfast.train.parallel import Parallel

_of_this_process: dict[Path, RunLock] = {}


class RunLock:
    """Held by rank 0 from before anything is read until the run ends; every rank makes one.

    A later run of the same process, such as one that goes on where an earlier one was given up, takes it over. ``--calibrate_only`` writes
    nothing and takes none.

    Args:
        config: names the folder, which is made where there is none.
        parallel: the processes.

    Raises:
        InputError: another process writes there, or nothing can be written; on rank 0, the other ranks exit with it.
    """

    def __init__(self, config: TrainConfig, parallel: Parallel) -> None:
        self._root = config.output_dir
        self._key = self._root.absolute()
        self._lock: Lock | None = None
        self._made = False
        with parallel.agreeing():
            if parallel.is_first and not config.calibrate_only:
                self._take(patient=parallel.restarts > 0)

    def _take(self, *, patient: bool) -> None:
        check_folder(self._root)
        if (before := _of_this_process.get(self._key)) is not None:
            before.release()
        self._made = not self._root.exists()
        lock = Lock(lock_file(self._root), target=Path(f"--output_dir {self._root}"), advice="let it end, or give another --output_dir")
        try:
            with naming(self._root):
                make_folder(self._root)
                _acquire(lock, patient=patient)
        except BaseException:
            self._remove_folder()
            raise
        self._lock, _of_this_process[self._key] = lock, self

    def release(self) -> None:
        """Give the lock back, and remove a folder that was made for it alone. A second call does nothing."""
        if self._lock is not None:
            _of_this_process.pop(self._key, None)
            self._lock.release()
            self._lock = None
            self._remove_folder()

    def _remove_folder(self) -> None:
        if self._made:
            with suppress(OSError):  # the run has written into it
                self._root.rmdir()

    @contextmanager
    def unless_it_fails(self) -> Iterator[None]:
        """A block after which the lock is still held; where it raises, the lock is given back."""
        try:
            yield
        except BaseException:
            self.release()
            raise


def _acquire(lock: Lock, *, patient: bool) -> None:
    """Take the lock. Processes that the launcher started anew, perhaps on another machine, wait until that of the dead ones is stale."""
    deadline = time.monotonic() + STALE_SECONDS + 5
    while True:
        try:
            lock.acquire()
            return
        except LockHeld as error:
            elsewhere = error.owner is not None and error.owner.host != socket.gethostname()
            if not patient or not elsewhere or time.monotonic() > deadline:
                raise
            time.sleep(1)
