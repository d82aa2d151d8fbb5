"""Rows that share an id: found in memory that does not grow with the manifest, and refused or accepted once.

A row that is counted twice changes every rate, so transcription and evaluation refuse repeated ids, in the same words.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from types import TracebackType

from arkfast.records import InputError, JsonRow


class SeenIds:
    """Ids with the place of each one's first row, in a temporary table that SQLite keeps on disk beyond a few megabytes.

    Ids themselves are compared, so no two different ones can be taken for one another.
    """

    def __init__(self) -> None:
        self._connection = sqlite3.connect("", isolation_level=None)  # "" is a private file, gone when closed
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-8192"):  # KiB
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, place TEXT, content BLOB) WITHOUT ROWID")
        self._connection.execute("BEGIN")

    def first(self, identity: str, place: str) -> str | None:
        """Where ``identity`` stood before, or None when this is its first place."""
        found = self._first(identity, place, b"")
        return None if found is None else found[0]

    def _first(self, identity: str, place: str, content: bytes) -> tuple[str, bytes] | None:
        if self._connection.execute("INSERT OR IGNORE INTO ids VALUES (?, ?, ?)", (identity, place, content)).rowcount:
            return None
        where, what = self._connection.execute("SELECT place, content FROM ids WHERE id = ?", (identity,)).fetchone()
        return str(where), bytes(what)

    def close(self) -> None:
        """Drop the table."""
        self._connection.close()


class UniqueIds(SeenIds):
    """Refuses a row whose id an earlier row has; identical rows are accepted once where that is asked for. As a block it closes itself.

    Args:
        allow_repeats: accept a row that equals the earlier one in every field, and leave it out.
    """

    def __init__(self, *, allow_repeats: bool = False) -> None:
        super().__init__()
        self._allow_repeats = allow_repeats
        self.repeats = 0
        """Rows that were left out so far."""

    def keep(self, identity: str, where: str, row: JsonRow | str) -> bool:
        """Whether the row is to be kept; False for a repeat that is to be left out.

        Args:
            identity: the row's id.
            where: what errors call the row, as ``file:line``.
            row: its fields, or its text where it has none.

        Raises:
            InputError: an earlier row has the id. The message names both places.
        """
        # Half of a surrogate pair, which JSON can spell, has no UTF-8; SQLite takes text in UTF-8 alone.
        key = identity.encode("utf-8", "surrogatepass").decode("utf-8", "backslashreplace")
        found = self._first(key, where, _fingerprint(row) if self._allow_repeats else b"")
        if found is None:
            return True
        first, content = found
        if not self._allow_repeats:
            raise InputError(
                f"{where}: id '{identity}' stands already at {first}; ids must be unique: give each row its own, or --allow_repeats to "
                "take identical rows once"
            )
        if content != _fingerprint(row):
            raise InputError(
                f"{where}: id '{identity}' stands already at {first} with other fields, and --allow_repeats takes identical rows alone; "
                "give each row its own id"
            )
        self.repeats += 1
        return False

    def __enter__(self) -> UniqueIds:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _fingerprint(row: JsonRow | str) -> bytes:
    """32 bytes that differ where any field does; the order of fields does not count."""
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest()
