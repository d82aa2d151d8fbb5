"""What a command says while it works.

On a terminal there is one live line on standard error; in a file or a pipe there is a plain line every so often instead. Nothing is
coloured, so there is nothing that NO_COLOR would have to switch off.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, NoReturn, TextIO

from arkfast import command_line
from arkfast.files import LineFile, make_folder, naming

if TYPE_CHECKING:
    from tqdm import tqdm

PLAIN_SECONDS = 20.0
"""Between two plain lines about progress, where standard error is no terminal."""


@dataclass(frozen=True, kw_only=True)
class ConsoleOptions:
    """How much a command says, and where besides the screen."""

    headings: ClassVar[dict[str, str]] = {"quiet": command_line.OUTPUT}

    quiet: bool = False
    """Say nothing but warnings and errors while it works."""
    log_file: Path | None = None
    """Add what is said while it works to this file too, with the time before each line; --quiet leaves nothing out of it."""


def is_terminal(stream: TextIO) -> bool:
    """Whether somebody watches the stream on a terminal on which a line can be written over."""
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # the stream is closed
        return False


def duration(seconds: float) -> str:
    """A time as it is read: ``45 s``, ``3 min``, ``2 h 5 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class Console:
    """Says how far a command is, what has to be noted, and where it stands at the end. A block that ends in an error logs it.

    Args:
        quiet: say only what ``warn`` is given.
        log_file: a file that everything is added to; None adds it to none.
        every: seconds between two plain lines about progress.
        clock: seconds that only rise, for tests.

    Raises:
        InputError: the log file cannot be written, when the block is entered or later.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        log_file: Path | None = None,
        every: float = PLAIN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quiet, self._log_path, self._every, self._clock = quiet, log_file, every, clock
        self._log: LineFile | None = None
        self._bar: tqdm[NoReturn] | None = None
        self._total: int | None = None
        self._unit, self._first, self._done = "", 0, 0
        self._began = self._last = clock()

    def __enter__(self) -> Console:
        if self._log_path is not None:
            with naming(self._log_path):
                make_folder(self._log_path.parent)
                self._log = LineFile(self._log_path, fresh=False)
        return self

    def begin(self, *, unit: str, total: int | None, done: int = 0) -> None:
        """Begin to count.

        Args:
            unit: what is counted, in the singular.
            total: how many there are; None where nobody knows.
            done: how many were done before.
        """
        self._unit, self._total, self._first, self._done = unit, total, done, done
        self._began = self._last = self._clock()
        if is_terminal(sys.stderr) and not self._quiet:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit=unit, file=sys.stderr, dynamic_ncols=True, mininterval=0.5, leave=False)

    def advance(self, text: str, *, by: int = 1) -> None:
        """Count ``by`` more.

        Args:
            text: how it goes, which is shown behind the count.
            by: how many are done since the last call.
        """
        self._done += by
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(by)
        now = self._clock()
        if now - self._last >= self._every:
            self._last = now
            line = self._progress(text, now - self._began)
            if self._bar is None and not self._quiet:
                print(line, file=sys.stderr, flush=True)
            self._keep(line)

    def _progress(self, text: str, elapsed: float) -> str:
        parts = [f"{self._unit} {self._done}" if self._total is None else f"{self._unit} {self._done} of {self._total}"]
        done = self._done - self._first
        if self._total and done > 0 and self._done < self._total:
            parts.append(f"{duration(elapsed * (self._total - self._done) / done)} left")
        return ", ".join([*parts, text] if text else parts)

    def say(self, text: str) -> None:
        """Say something once."""
        if not self._quiet:
            self._show(text)
        self._keep(text)

    def warn(self, text: str) -> None:
        """Say something once, under ``--quiet`` too."""
        self._show(text)
        self._keep(text)

    def keep(self, text: str) -> None:
        """Add something to the log file alone."""
        self._keep(text)

    def out(self, text: str) -> None:
        """Write a line on standard output, above the live line."""
        self._show(text, sys.stdout)

    def _show(self, text: str, stream: TextIO | None = None) -> None:
        stream = stream or sys.stderr
        if self._bar is None:
            print(text, file=stream, flush=True)
        else:
            self._bar.write(text, file=stream)
            stream.flush()

    def _keep(self, text: str) -> None:
        if self._log is not None:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            with naming(self._log.path):
                self._log.add("".join(f"{stamp} {line}\n" for line in text.splitlines()).encode("utf-8", "backslashreplace"))

    def end(self) -> None:
        """Take the live line away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()
        if self._log is None:
            return
        try:
            if error is not None:
                self._keep(f"error: {error}" if str(error) else f"error: {type(error).__name__}")
        finally:
            self._log.close()
