"""Standard input, output and error of a command, so that what is said can never undo what was done.

Work that is finished must not end in a traceback because ``head`` has read enough, a terminal is gone, or the encoding of standard
output has no ``→``. What cannot be encoded is escaped, and what nobody reads is dropped.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import TextIO

PIPE_CLOSED = 141
"""What a shell shows for a program that SIGPIPE ends: the exit code where standard output was the work itself and nobody reads it."""


class Patient(io.TextIOWrapper):
    """A text stream that drops what can no longer be written, and escapes what its encoding lacks."""

    needed = False
    """Whether a reader that is gone is a ``BrokenPipeError`` all the same."""

    def write(self, text: str) -> int:
        """Write a text; what cannot be written is dropped, and what follows too."""
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Write what is in the buffer, or drop it."""
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """From now on everything goes to the null device, of the buffer too."""
        number = self.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
        with contextlib.suppress(OSError):
            super().flush()
        if self.needed and isinstance(error, BrokenPipeError):
            raise error
        if number == 1 and error.errno != errno.EPIPE:
            print(f"standard output cannot be written any further ({error.strerror}); what would be said there is dropped", file=sys.stderr)


def prepare(*, needed: bool = False) -> None:
    """Make the process's own standard streams safe; streams that somebody has put in their place stay as they are.

    A closed descriptor is filled, so that no file that is opened later becomes standard output by accident; writing to it is an error as
    before.

    Args:
        needed: standard output is what the command is for, so that a reader that is gone is a ``BrokenPipeError``.
    """
    closed = [number for number in (0, 1, 2) if _fill(number)]
    sys.stdout = _patient(sys.stdout, sys.__stdout__, 1, closed)
    sys.stderr = _patient(sys.stderr, sys.__stderr__, 2, closed)
    if isinstance(sys.stdout, Patient):
        sys.stdout.needed = needed


def _fill(number: int) -> bool:
    """Open a descriptor that is closed, so that it can be neither read nor written; whether it was."""
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_WRONLY if number == 0 else os.O_RDONLY)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
        return True
    return False


def _patient(stream: TextIO | None, own: TextIO | None, number: int, closed: list[int]) -> TextIO:
    if stream is None or number in closed:
        return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")  # it lives as long as the process
    if stream is not own or isinstance(stream, Patient) or not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    return Patient(
        io.BufferedWriter(io.FileIO(number, "w", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
