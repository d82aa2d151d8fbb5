"""Lengths of recordings, kept beside a manifest so that the next scan does not open a million files.

An entry holds for a file as long as its size and time of change are what they were. The cache is only a help: where it cannot be used,
everything is measured anew.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from arkfast.records import InputError

_MAGIC = 0x41524B44  # "ARKD": SQLite's application_id of these files, so that no other database is written to
_VERSION = 3
_COLUMNS = "recording TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, seconds REAL, cut TEXT, channels INTEGER, strict_cut TEXT"
_COMMIT_SECONDS = 5.0  # what a killed scan has to measure again, at most


class Length(NamedTuple):
    """How long a recording was when its file was in this state."""

    size: int
    """Bytes of the file."""
    mtime_ns: int
    """Time of its last change."""
    seconds: float
    """Length of the recording."""
    cut: str | None = None
    """Why its end is missing, else None."""
    channels: int = 1
    """How many it has."""
    strict_cut: str | None = None
    """``cut``, also for what is refused only on demand: see ``arkfast.audio.Extent``."""

    def matches(self, state: os.stat_result) -> bool:
        """Whether the file is still the one that was measured."""
        return (self.size, self.mtime_ns) == (state.st_size, state.st_mtime_ns)


class DurationCache:
    """Lengths by recording, in an SQLite file.

    Args:
        path: the file, made where there is none; None keeps nothing.

    Raises:
        InputError: the file is something else.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._committed = time.monotonic()
        if path is None:
            return
        try:
            self._connection = connection = sqlite3.connect(path, timeout=10)
            self._check_own(connection, path)
            connection.execute("PRAGMA synchronous=OFF")  # a cache need not survive a power cut
            connection.execute(f"CREATE TABLE IF NOT EXISTS durations ({_COLUMNS}) WITHOUT ROWID")
            connection.commit()
        except sqlite3.OperationalError as error:  # a read-only folder, a lock, a file system without locks
            self._give_up(error)
        except sqlite3.DatabaseError as error:
            connection.close()
            raise InputError(f"{path}: is no cache of durations ({error}); give another --cache") from error

    @staticmethod
    def _check_own(connection: sqlite3.Connection, path: Path) -> None:
        magic, version = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            connection.execute(f"PRAGMA application_id={_MAGIC}")
            connection.execute(f"PRAGMA user_version={_VERSION}")
        elif magic != _MAGIC:
            connection.close()
            raise InputError(f"{path}: is a database, but no cache of durations; give another --cache")
        elif version != _VERSION:
            connection.execute("DROP TABLE durations")
            connection.execute(f"PRAGMA user_version={_VERSION}")

    def get(self, recordings: Sequence[str]) -> dict[str, Length]:
        """The lengths known of some recordings (a few hundred at a time)."""
        if self._connection is None:
            return {}
        marks = ",".join("?" * len(recordings))
        query = f"SELECT recording, size, mtime_ns, seconds, cut, channels, strict_cut FROM durations WHERE recording IN ({marks})"
        try:
            found = self._connection.execute(query, list(recordings)).fetchall()
        except sqlite3.DatabaseError as error:
            self._give_up(error)
            return {}
        return {recording: Length(*known) for recording, *known in found}

    def put(self, lengths: Mapping[str, Length]) -> None:
        """Remember lengths; on disk a few seconds later, or at ``close``."""
        if self._connection is None or not lengths:
            return
        rows: Iterable[tuple[str | int | float | None, ...]] = ((recording, *length) for recording, length in lengths.items())
        try:
            self._connection.executemany("INSERT OR REPLACE INTO durations VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            if time.monotonic() - self._committed > _COMMIT_SECONDS:
                self._connection.commit()
                self._committed = time.monotonic()
        except sqlite3.DatabaseError as error:
            self._give_up(error)

    def close(self) -> None:
        """Write what is pending and let go of the file."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.commit()
        except sqlite3.DatabaseError as error:
            self._say(error)
        connection.close()

    def _give_up(self, error: sqlite3.Error) -> None:
        self._say(error)
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _say(self, error: sqlite3.Error) -> None:
        print(f"{self.path}: durations are not kept ({error})", file=sys.stderr)

    def __enter__(self) -> DurationCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
