"""Recordings of other machines as files here, fetched ahead of whoever reads them, within a bound, and gone when their rows are done.

Rows come in order, and a row is done only when those before it are. So room is given in the rows' order: what is under way can always end,
and makes room for the next. Nobody may wait here for room while rows that hold some wait for him; ``ready`` says whether one would.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Protocol, TypeVar

from arkfast.audio.limits import MAX_BYTES
from arkfast.files.names import clear
from arkfast.files.remote import RemoteError, opened, shown, tries
from arkfast.files.spool import Spool
from arkfast.infer.result import Result
from arkfast.records import InputError

THREADS = 16
"""Recordings that are fetched at once."""
AHEAD = 64
"""Rows that are looked at beyond the one that is asked for."""
UNSIZED_SHARE = 8
"""A recording whose size nobody says gets one part in so many of the spool, and may not be larger."""
UNSIZED_HINT = f", since nobody says its size; a larger --spool_mb allows one part in {UNSIZED_SHARE} of it"
PREFIX = "arkfast-spool-"
_PLAIN_SUFFIX = 12  # characters; what is longer is none


def over_limit(size: int, most: int) -> str | None:
    """Why a recording of so many bytes is not fetched into a spool of ``most``; None where it is."""
    if size <= min(most, MAX_BYTES):
        return None
    larger = f"; --spool_mb {-(-size // 1_000_000)} takes it" if size <= MAX_BYTES else ""
    return f"has {size} bytes, over the limit of {min(most, MAX_BYTES)}{larger}"


class Asks(Protocol):
    """A row on its way, of which a recording may have to be fetched."""

    @property
    def wanted(self) -> str | None:
        """The address of a recording that is needed; None where nothing is."""


A = TypeVar("A", bound=Asks)


@dataclass(eq=False)
class Copy:
    """A recording in the spool, or on its way there."""

    address: str
    path: Path
    number: int
    """Its place in the order in which room is given."""
    bytes: int = 0
    """Of the spool, that it has or is to have."""
    given: bool = False
    """Whether it has had its turn for room."""
    ended: Future[None] | None = None
    """Done when it is there; its error says why it is not."""


class Fetcher:
    """Fetches recordings. A block ends with the spool gone.

    Args:
        most_mb: the spool's size in MB of 10⁶ bytes.

    Raises:
        InputError: no folder can be made for the spool, when the first recording is asked for.
    """

    def __init__(self, most_mb: int) -> None:
        self._most = most_mb * 1_000_000
        self._spool: Spool | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._stop = threading.Event()
        self._room = threading.Condition()
        self._used, self._turn, self._numbers = 0, 0, 0
        self._copies = deque[Copy | None]()  # of the rows that were looked at and not given yet
        self._handed_out: dict[str, Copy] = {}

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Fetch no more, and remove the spool."""
        self._stop.set()
        with self._room:
            self._room.notify_all()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        if self._spool is not None:
            self._spool.close()
        self._threads = self._spool = None

    def ahead(self, rows: Iterable[A]) -> Iterator[tuple[A, str | InputError | None]]:
        """Each row, in order, with the path of its recording's copy, or why there is none; None for a row that needs none.

        Args:
            rows: read up to ``AHEAD`` rows ahead.
        """
        source: Iterator[A] | None = iter(rows)
        waiting = deque[A]()
        self._copies.clear()
        while True:
            while source is not None and len(waiting) < AHEAD:
                row = next(source, None)
                if row is None:
                    source = None
                    break
                waiting.append(row)
                self._copies.append(None if row.wanted is None else self._ask(row.wanted))
            if not waiting:
                return
            copy = self._copies.popleft()
            yield waiting.popleft(), None if copy is None else self._had(copy)

    def ready(self) -> bool:
        """Whether the next row can be had at once, without waiting for its recording."""
        copy = self._copies[0] if self._copies else None
        return copy is None or (copy.ended is not None and copy.ended.done())

    def named(self, result: Result) -> Result:
        """The result of a clip or row whose recording is a copy here, with the recording's address in what it says of faults."""
        copy = self._handed_out.get(result.utterance.audio) if isinstance(result.utterance.audio, str) else None
        if copy is None:
            return result
        path, name = str(copy.path), shown(copy.address)
        segments = [
            segment | {"error": segment["error"].replace(path, name)} if segment.get("error") else segment
            for segment in map(dict, result.segments)
        ]
        return replace(result, error=result.error and result.error.replace(path, name), segments=segments)

    def done(self, path: str) -> None:
        """Remove a copy, whose row is done."""
        self._release(self._handed_out.pop(path))

    def _ask(self, address: str) -> Copy:
        if self._spool is None or self._threads is None:
            self._spool = Spool(None, prefix=PREFIX, flag="TMPDIR")
            self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="arkfast-fetch")
        self._numbers += 1
        suffix = PurePosixPath(shown(address).removesuffix("?…")).suffix
        name = f"{self._numbers}{suffix if len(suffix) <= _PLAIN_SUFFIX and suffix[1:].isalnum() else ''}"
        copy = Copy(address, self._spool.path / name, self._numbers)
        copy.ended = self._threads.submit(self._fetch, copy)
        return copy

    def _had(self, copy: Copy) -> str | InputError:
        assert copy.ended is not None
        try:
            copy.ended.result()
        except RemoteError as error:
            return InputError(f"{shown(copy.address)}: {error}")
        except InputError as error:
            return error
        self._handed_out[str(copy.path)] = copy
        return str(copy.path)

    def _fetch(self, copy: Copy) -> None:
        """A thread's work for one recording."""
        fault: InputError = RemoteError("is not wanted any more")
        try:
            for _ in tries(self._stop):
                try:
                    with opened(copy.address) as found:
                        self._take_room(copy, found.size)
                        most = copy.bytes if found.size is None else found.size
                        size = found.copy(copy.path, most, self._stop, hint="" if found.size is not None else UNSIZED_HINT)
                    with self._room:
                        self._used -= copy.bytes - size
                        copy.bytes = size
                        self._room.notify_all()
                    return
                except RemoteError as error:
                    fault = error
                    if not error.passing:
                        break
        except InputError as error:
            fault = error
        except BaseException:  # those behind it would wait for its turn
            self._release(copy)
            raise
        self._release(copy)
        raise fault

    def _take_room(self, copy: Copy, size: int | None) -> None:
        """Wait for the copy's turn and for room; nothing more where a try before has had it."""
        asked = self._most // UNSIZED_SHARE if size is None else size
        if fault := over_limit(asked, self._most):
            raise RemoteError(fault)
        if copy.given:
            if asked > copy.bytes:
                raise RemoteError("had another size at the first try; is it being written?")
            return
        with self._room:
            while not self._stop.is_set() and (self._turn != copy.number - 1 or self._used + asked > self._most):
                self._room.wait(1.0)
            if self._stop.is_set():
                raise RemoteError("is not wanted any more")
            self._used += asked
            copy.bytes = asked
            self._give(copy)

    def _give(self, copy: Copy) -> None:
        if not copy.given:
            copy.given, self._turn = True, copy.number
            self._room.notify_all()

    def _release(self, copy: Copy) -> None:
        clear(copy.path)
        with self._room:
            while not copy.given and self._turn != copy.number - 1 and not self._stop.is_set():
                self._room.wait(1.0)  # those before it come first
            self._give(copy)
            self._used, copy.bytes = self._used - copy.bytes, 0
            self._room.notify_all()
