"""JSON Lines on disk: rows read with their line numbers, and files that appear whole or not at all.

Knows lines and files; does not know what a row means.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from arkfast.records import InputError


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Each line's object, in file order, blank lines skipped.

    Raises:
        InputError: the file cannot be read, or a line is not a JSON object; the message begins with ``file:line``.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a JSONL file") from error
    with file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except ValueError as error:  # both UnicodeDecodeError and JSONDecodeError
                raise InputError(f"{path}:{number}: not valid JSON ({error}); repair or remove the line") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}")
            yield row


class AtomicJsonl:
    """A JSONL file written beside its destination and moved there when it is complete.

    Until then an existing file at the destination is untouched. When the block ends by an exception, the rows written so far stay in
    ``partial``; one left by an earlier run is moved to ``partial`` + ``.old`` at the start rather than overwritten.

    Raises:
        InputError: the destination cannot be written to, at the start or later (a full disk); the rows written so far stay as above.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()  # a link's target is replaced, not the link
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.rows = 0
        self._file: FileIO
        self._size = 0

    def __enter__(self) -> AtomicJsonl:
        if self.path.is_dir():
            raise InputError(f"{self.path}: is a folder; give the path of a file to write")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.partial.exists():
                os.replace(self.partial, self.partial.with_name(self.partial.name + ".old"))
            self._file = FileIO(self.partial, "w")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); give a path in a folder that you may write to") from error
        return self

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row and hand it to the operating system, so that a killed process loses none."""
        try:
            line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8")
        except UnicodeEncodeError:  # a lone surrogate, which JSON escapes can spell and UTF-8 cannot
            line = (json.dumps(row) + "\n").encode("utf-8")
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._size)  # half a row is none
            raise self._failed(error) from error
        self._size += len(line)
        self.rows += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            try:
                with self._file:
                    os.fsync(self._file.fileno())
                os.replace(self.partial, self.path)
            except OSError as fault:
                raise self._failed(fault) from fault
            return
        with suppress(OSError):  # what ended the block is what is told
            self._file.close()
            if not self.rows:
                self.partial.unlink()

    def _failed(self, error: OSError) -> InputError:
        kept = f"the {self.rows} rows written so far are in {self.partial}; " if self.rows else ""
        return InputError(
            f"{self.path}: cannot be written any further ({error.strerror}); {kept}make room or give another path, and run again"
        )
