"""Uploads and features while a request is worked on: a folder for each, gone when the request is."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arkfast.files import make_folder


class Spool:
    """A folder that only this service uses, and that nobody else on the machine can read.

    Args:
        parent: where it is made; None takes the system's temporary folder.
    """

    def __init__(self, parent: Path | None) -> None:
        if parent is not None:
            make_folder(parent)
        self._own = tempfile.TemporaryDirectory(prefix="arkfast-serve-", dir=parent)
        self._numbers = itertools.count(1)

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
        self._own.cleanup()
