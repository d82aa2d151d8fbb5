"""JSON Lines on disk: rows read with their line numbers, and files that appear whole or not at all.

Knows lines and files; does not know what a row means.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType

from arkfast.files import LineFile, commit, destination, json_line, make_folder, move, naming
from arkfast.records import InputError, JsonObject, JsonRow


def read_rows(path: Path) -> Iterator[JsonObject]:
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
    ``partial``, which is no temporary but the user's: one left by an earlier run is moved to ``partial`` + ``.old`` at the start rather
    than overwritten. A killed process loses no row; a power cut may lose those that the system had not written down yet, since rows are
    fsynced once, before the file takes its name.

    Raises:
        InputError: the destination cannot be written to, at the start or later (a full disk); the rows written so far stay as above.
    """

    def __init__(self, path: Path) -> None:
        self.path = destination(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._aside = self.partial.with_name(self.partial.name + ".old")
        self.rows = 0
        self._lines: LineFile

    def __enter__(self) -> AtomicJsonl:
        with naming(self.path):
            make_folder(self.path.parent)
            if self.partial.exists():
                move(self.partial, self._aside)
            self._lines = LineFile(self.partial, fresh=True)
        return self

    def write(self, row: JsonRow) -> None:
        """Append one row and hand it to the operating system, so that a killed process loses none."""
        try:
            self._lines.add(json_line(row))
        except OSError as error:
            raise self._failed(error) from error
        self.rows += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                with closing(self._lines) as lines:
                    lines.sync()
                    lines.check_own()
                commit(self.partial, self.path)
        except OSError as fault:
            raise self._failed(fault) from fault
        finally:
            with suppress(OSError):  # what ended the block is what is told
                self._lines.close()
                if not self.rows:
                    self.partial.unlink(missing_ok=True)

    def _failed(self, error: OSError) -> InputError:
        # Another process that writes the same file has moved the rows of this one aside.
        where = self._aside if error.errno == errno.EBUSY else self.partial
        kept = f"the {self.rows} rows written so far are in {where}; " if self.rows else ""
        return InputError(
            f"{self.path}: cannot be written any further ({error.strerror}); {kept}make room or give another path, and run again"
        )
