"""Which ids a manifest has had, in memory that does not grow with it.

Knows ids and where they stood; compares the ids themselves, so that no two different ones can be taken for one another.
"""

from __future__ import annotations

import sqlite3


class SeenIds:
    """Ids with the place of each one's first row, in a temporary table that SQLite keeps on disk beyond a few megabytes."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect("", isolation_level=None)  # "" is a private file, gone when closed
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-8192"):  # KiB
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID")
        self._connection.execute("BEGIN")

    def first(self, identity: str, place: str) -> str | None:
        """Where ``identity`` stood before, or None when this is its first place."""
        if self._connection.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", (identity, place)).rowcount:
            return None
        return str(self._connection.execute("SELECT place FROM ids WHERE id = ?", (identity,)).fetchone()[0])

    def close(self) -> None:
        """Drop the table."""
        self._connection.close()
