"""Where a recording's bytes come from: a regular file or bytes in memory, named for messages and held to a size.

Pipes and devices are refused before they are opened, so that nothing here can hang.
"""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from arkfast.records import InputError

if TYPE_CHECKING:
    from typing_extensions import Buffer

Source = str | os.PathLike[str] | bytes

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True)
class Bytes:
    """A recording that exists, is not empty and is not too large."""

    label: str
    """What messages call it."""
    path: str | None
    """Its path, or None when it is in memory."""
    content: bytes | None
    """Its bytes (any buffer), or None when it is a file."""
    version: tuple[int, int] | None
    """Size and time of the last change of a file, by which what was found out about it can be remembered."""
    patch: tuple[int, bytes] | None = None
    """Bytes that are read in place of those that stand at an offset; None: the file is read as it is."""

    def open(self) -> BinaryIO:
        """A new stream at the first byte."""
        stream = self._unpatched()
        return stream if self.patch is None else io.BufferedReader(_Patched(stream, *self.patch))

    def _unpatched(self) -> BinaryIO:
        if self.path is None:
            assert self.content is not None
            return io.BytesIO(self.content)
        return open(self.path, "rb")


class _Patched(io.RawIOBase):
    """A stream in which some bytes are others.

    Args:
        stream: the stream, which is closed with this one.
        at: where they stand.
        data: what is read there.
    """

    def __init__(self, stream: BinaryIO, at: int, data: bytes) -> None:
        self._stream, self._from, self._data = stream, at, data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._stream.seek(offset, whence)

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")
        begin = self._stream.tell()
        piece = self._stream.read(len(view))
        view[: len(piece)] = piece
        first, behind = max(begin, self._from), min(begin + len(piece), self._from + len(self._data))
        if first < behind:
            view[first - begin : behind - begin] = self._data[first - self._from : behind - self._from]
        return len(piece)

    def close(self) -> None:
        self._stream.close()
        super().close()


def locate(source: Source, name: str | None, max_bytes: int | None) -> Bytes:
    """Finds a recording without reading it.

    Args:
        source: path, or the bytes of a whole file.
        name: what errors call the recording; None is the path.
        max_bytes: the largest file allowed; None allows any.

    Raises:
        InputError: there is no such file, it is no regular file, it cannot be read, is empty, or has more than ``max_bytes``.
        TypeError: ``source`` is no path and no bytes.
    """
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        label = path if name is None else f"{name}: {path}"
        size, changed = _file_version(path, label)
        found = Bytes(label, path, None, (size, changed))
    elif isinstance(source, (bytes, bytearray, memoryview)):
        label = "audio bytes" if name is None else name
        size = memoryview(source).nbytes
        found = Bytes(label, None, source, None)
    else:
        raise TypeError(f"load: expected a path or the bytes of a file, got {type(source).__name__}")
    if size == 0:
        raise InputError(f"{label}: the file is empty")
    if max_bytes is not None and size > max_bytes:
        raise InputError(f"{label}: {size} bytes, over the limit of {max_bytes}: split the recording, or raise max_bytes")
    return found


def _file_version(path: str, label: str) -> tuple[int, int]:
    """Bytes, and nanoseconds of the last change."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        target = f": it is a symbolic link to {os.readlink(path)}" if os.path.islink(path) else ""
        raise InputError(f"{label}: no such file{target}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{label}: the file cannot be reached ({error})") from error
    if not stat.S_ISREG(status.st_mode):
        kind = next((text for test, text in _KINDS if test(status.st_mode)), "something else")
        raise InputError(f"{label}: not a regular file but {kind}: give a file, or its bytes")
    if not os.access(path, os.R_OK):
        raise InputError(f"{label}: no permission to read it")
    return status.st_size, status.st_mtime_ns
