"""Uploads and features while a request is worked on: a folder for each, gone when the request is."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from arkfast.files import spool

log = logging.getLogger("arkfast.serve")

PREFIX = "arkfast-serve-"
_ATTEMPTS = 10


class Spool(spool.Spool):
    """A folder that only this service uses (``arkfast.files.spool``), and folders in it.

    Args:
        parent: where it is made; None takes the system's temporary folder.

    Raises:
        InputError: it cannot be made there.
    """

    def __init__(self, parent: Path | None) -> None:
        removed = partial(log.warning, "removed the spool of a service that was killed: %s")
        super().__init__(parent, prefix=PREFIX, flag="--spool", removed=removed)
        self._numbers = itertools.count(1)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A new folder in it, for as long as the block lasts."""
        path = self.path / str(next(self._numbers))
        path.mkdir()
        try:
            yield path
        finally:
            _remove(path)


def _remove(folder: Path) -> None:
    """Remove a request's folder. A process that still hears a recording whose client went away may add a file meanwhile."""
    for _ in range(_ATTEMPTS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
    log.error("the folder %s of a request cannot be removed before the service ends", folder.name)
