"""Whether the first rows of a manifest say that another file was meant, or another field.

A wrong file would otherwise become thousands of bad rows, each with the same reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from arkfast.data.rows import Row
from arkfast.records import InputError

FIRST = 20
"""So many rows from the start that all fail for one reason are no accident."""
WRONG_FILE = frozenset({"not JSON", "not UTF-8", "overlong line", "audio field"})
"""Faults that all rows have in a file that is no manifest."""


class FirstRows:
    """Looks at rows in their order, and stops at the twentieth where all had one fault.

    Args:
        path: the manifest, for the error.
        kinds: the faults that count; None counts each.
    """

    def __init__(self, path: Path | str, *, kinds: frozenset[str] | None = None) -> None:
        self._path, self._counted = path, kinds
        self._rows, self._first = 0, ""
        self._kinds: set[str | None] = set()

    def see(self, row: Row) -> None:
        """Look at the next row.

        Raises:
            InputError: it is the twentieth, and all had one fault.
        """
        self._rows += 1
        if self._rows > FIRST:
            return
        self._kinds.add(None if row.error is None else row.error.kind)
        self._first = self._first or str(row.error)
        if self._rows == FIRST:
            self._judge(f"the first {FIRST} rows cannot be used", self._counted)

    def end(self) -> None:
        """Say that there are no more rows.

        Raises:
            InputError: there were fewer than twenty, and all had the fault of a file that is no manifest.
        """
        if 0 < self._rows < FIRST:
            self._judge("no row can be used", WRONG_FILE)

    def _judge(self, what: str, kinds: frozenset[str] | None) -> None:
        (kind,) = self._kinds if len(self._kinds) == 1 else (None,)
        if kind is not None and (kinds is None or kind in kinds):
            raise InputError(f"{self._path}: {what}, all for one reason, and nothing was written; the first of them: {self._first}")


def seen(rows: Iterable[Row], first: FirstRows) -> Iterator[Row]:
    """The rows, each looked at before it is handed on."""
    for row in rows:
        first.see(row)
        yield row
