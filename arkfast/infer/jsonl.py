"""Files of transcripts: rows read with their places, and files that appear whole or not at all."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType

from arkfast.files import (
    LineFile,
    commit,
    destination,
    is_outlet,
    is_standard_output,
    json_line,
    lock_output,
    make_folder,
    move,
    naming,
)
from arkfast.files.json_input import parse_json
from arkfast.files.lines import BOM, read_lines
from arkfast.records import InputError, JsonObject, JsonRow


def read_rows(path: Path) -> Iterator[JsonObject]:
    """``read_places`` without the places."""
    return (row for _, row in read_places(path))


def read_places(path: Path) -> Iterator[tuple[str, JsonObject]]:
    """Each line's object with its place as ``file:line``, in file order, blank lines skipped.

    ``-`` is standard input, a pipe can be read any number of times, and gzip, zstd and JSON arrays are read too
    (``arkfast.files.lines``); in an array the element's number stands for the line's.

    Raises:
        InputError: the file cannot be read, or a line is not a JSON object; the message begins with ``file:line``.
    """
    for number, (line, _, whole) in enumerate(read_lines(path), start=1):
        content = line.removeprefix(BOM) if number == 1 else line
        if not content.strip():
            continue
        where = f"{path}:{number}"
        if not whole:
            raise InputError(f"{where}: a line of more than 4 MiB is no row; is this a JSONL file?")
        try:
            row = parse_json(content)
        except ValueError as error:  # UnicodeDecodeError and JSONDecodeError too
            raise InputError(f"{where}: not valid JSON ({error}); repair or remove the line") from error
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected a JSON object, got {type(row).__name__}")
        yield where, row


class AtomicJsonl:
    """A JSONL file written beside its destination and moved there when it is complete. One run at a time writes it.

    Until then an existing file at the destination is untouched. When the block ends by an exception, the rows written so far stay in
    ``partial``, which is no temporary but the user's: one left by an earlier run is moved to ``partial`` + ``.old`` at the start rather
    than overwritten. A killed process loses no row; a power cut may lose those that the system had not written down yet, since rows are
    fsynced once, before the file takes its name.

    Args:
        path: the file.
        kept: whether the rows of an earlier ``partial`` are kept somewhere else too, so that it is overwritten.
        finish: makes other files of the complete ``partial``, whose rows it is told the number of; ``partial`` then goes, and nothing takes
            the name ``path``. None moves ``partial`` to ``path``.

    Attributes:
        rows: how many were written.
        committed: called when the file has its name, while nobody else may write it.

    A device, a pipe or standard output (``-``) is written through row by row, and ``partial`` is that path itself.

    Raises:
        LockHeld: another run writes the file; its rows and its partial file are not touched.
        InputError: the destination cannot be written to, at the start or later (a full disk); the rows written so far stay as above.
        BrokenPipeError: standard output was closed, as by ``head``.
    """

    def __init__(self, path: Path, *, kept: bool = False, finish: Callable[[Path, int], None] | None = None) -> None:
        self.path = destination(path)
        self._kept, self._finish = kept, finish
        self._through = is_outlet(path)
        self.partial = self.path if self._through else self.path.with_name(self.path.name + ".partial")
        self._lock = ExitStack()
        self._aside = self.partial.with_name(self.partial.name + ".old")
        self.rows = 0
        self.committed: list[Callable[[], None]] = []
        self._lines: LineFile

    def __enter__(self) -> AtomicJsonl:
        with naming(self.path), ExitStack() as lock:
            if not self._through:
                make_folder(self.path.parent)
                lock.enter_context(lock_output(self.path))
                if self.partial.exists() and not self._kept:
                    move(self.partial, self._aside)
            self._lines = LineFile(self.partial, fresh=True)
            self._lock = lock.pop_all()
        return self

    def write(self, row: JsonRow) -> None:
        """Append one row and hand it to the operating system, so that a killed process loses none."""
        try:
            self._lines.add(json_line(row))
        except BrokenPipeError as error:
            if is_standard_output(self.path):
                raise
            raise self._failed(error) from error
        except OSError as error:
            raise self._failed(error) from error
        self.rows += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            try:
                if kind is None:
                    with closing(self._lines) as lines:
                        lines.sync()
                        lines.check_own()
                    if self._finish is not None:
                        self._finish(self.partial, self.rows)
                        self.partial.unlink()
                    elif not self._through:
                        commit(self.partial, self.path)
                    for tell in self.committed:
                        tell()
            except OSError as fault:
                raise self._failed(fault) from fault
            finally:
                with suppress(OSError):  # what ended the block is what is told
                    self._lines.close()
                    if not self.rows and not self._through:
                        self.partial.unlink(missing_ok=True)

    def _failed(self, error: OSError) -> InputError:
        # Another process, which no lock kept away, writes the same file and has moved the rows of this one aside.
        where = self._aside if error.errno == errno.EBUSY else self.partial
        kept = f"the {self.rows} rows written so far are in {where}; " if self.rows else ""
        advice = (
            "what reads it has ended; run both again" if error.errno == errno.EPIPE else "make room or give another path, and run again"
        )
        return InputError(f"{self.path}: cannot be written any further ({error.strerror}); {kept}{advice}")
