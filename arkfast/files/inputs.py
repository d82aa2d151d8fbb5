"""What is read, opened so that it can be read again: files, standard input and pipes, compressed or not.

A pipe gives its content once, and a manifest is often read twice: counted and checked first, then worked on. What cannot be read twice is
copied into a temporary file when it is first opened, and every later reader of the same path gets the copy.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from arkfast.files.outlets import descriptor_of
from arkfast.records import InputError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_BLOCK = 1 << 20  # bytes that are copied at a time

_copies: dict[tuple[str, int, int], _Copy] = {}


def local_path(given: str) -> str:
    """The path that a user or a row means: ``~`` is the home folder, and ``file:///data/a%20b.wav`` is ``/data/a b.wav``.

    Raises:
        InputError: the address is that of another machine.
    """
    if given.startswith("~"):
        return os.path.expanduser(given)
    if not given.lower().startswith("file:/"):
        return given
    address = urlsplit(given)
    if address.netloc not in ("", "localhost"):
        raise InputError(f"{given}: is a file of the machine {address.netloc}; give a path on this one")
    from urllib.request import url2pathname

    return url2pathname(address.path) if os.name == "nt" else unquote(address.path)


def is_stream(path: Path) -> bool:
    """Whether the path gives its content once: ``-``, an open file of the process, a pipe, a device."""
    if descriptor_of(path, standard=0) is not None:
        return True
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def input_folder(path: Path) -> Path:
    """Where relative paths in a file start: its folder; for standard input and open files of the process, the current folder."""
    return Path() if descriptor_of(path, standard=0) is not None else path.parent


@contextmanager
def naming_input(path: Path, what: str = "file") -> Iterator[None]:
    """What the system refuses in this block is an ``InputError`` that names the path and asks for ``what``."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}); give the path of a {what}") from error


class Input:
    """A file that is read, as ``open_input`` gives it. As a block it closes itself.

    Its methods are those of ``io.BufferedReader``, and raise ``InputError`` where the file is damaged.
    """

    def __init__(self, path: Path, file: io.BufferedReader, below: IO[bytes] | None = None) -> None:
        self._path, self._file, self._below = path, file, below

    def peek(self, size: int) -> bytes:
        """The next bytes, which stay to be read; fewer than ``size`` where that takes more than one call of the system, none at the end."""
        with self._named():
            return self._file.peek(size)[:size]

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; none at the end."""
        with self._named():
            return self._file.read(size)

    def readline(self, size: int) -> bytes:
        """Up to ``size`` bytes, as far as the next line feed; none at the end."""
        with self._named():
            return self._file.readline(size)

    def close(self) -> None:
        """Read no more."""
        self._file.close()
        if self._below is not None:
            self._below.close()

    def __enter__(self) -> Input:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{self._path}: cannot be read to its end ({reason}); is it damaged, or still being written?") from error
        except Exception as error:  # the libraries for zstd have errors of their own
            if type(error).__name__ != "ZstdError":
                raise
            raise InputError(f"{self._path}: cannot be decompressed ({error}); is it damaged, or still being written?") from error


def input_size(path: Path) -> int | None:
    """Bytes that ``open_input`` gives; None where that is not known beforehand: of pipes and compressed files.

    Raises:
        InputError: the file cannot be read.
    """
    if is_stream(path):
        return None
    with naming_input(path), path.open("rb") as file:
        return None if file.read(4).startswith((_GZIP, _ZSTD)) else os.fstat(file.fileno()).st_size


def open_input(path: Path, what: str = "file") -> Input:
    """Open a file to read, decompressed where it is gzip or zstd. A pipe can be opened any number of times.

    Args:
        path: ``-`` is standard input.
        what: what the path should be, as errors say: "JSONL file".

    Raises:
        InputError: it cannot be read, or is compressed by zstd and no library for that is installed. Reading raises it too.
    """
    file = open_bytes(path, what)
    try:
        head = file.peek(4)[:4]
        if head.startswith(_GZIP):
            import gzip

            return Input(path, io.BufferedReader(gzip.GzipFile(fileobj=file)), file)
        if head == _ZSTD:
            return Input(path, io.BufferedReader(_zstd(path, file)), file)
        return Input(path, file)
    except OSError as error:  # a folder
        file.close()
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a {what}") from error
    except BaseException:
        file.close()
        raise


def open_bytes(path: Path, what: str = "file") -> io.BufferedReader:
    """``open_input`` without decompression.

    Raises:
        InputError: it cannot be opened.
    """
    with naming_input(path, what):
        return io.BufferedReader(_open_raw(path))


def _open_raw(path: Path) -> io.RawIOBase:
    number = descriptor_of(path, standard=0)
    if number is None and not is_stream(path):
        return io.FileIO(path)
    state = path.stat() if number is None else os.fstat(number)
    if number is not None and stat.S_ISREG(state.st_mode) and sys.platform == "linux" and os.lseek(number, 0, os.SEEK_CUR) == 0:
        return io.FileIO(f"/proc/self/fd/{number}")  # the shell's "< file": a file after all, with a reading position of its own
    key = (str(path) if number is None else "", state.st_dev, state.st_ino)
    if (copy := _copies.get(key)) is None:
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise InputError(f"{path}: gives its content once, and several processes would each get a part; write it to a file")
        copy = _copies[key] = _Copy(path, number)
    return copy.reader()


class _Copy:
    """The whole content of a stream in a temporary file without a name."""

    def __init__(self, path: Path, number: int | None) -> None:
        self._file: IO[bytes] = TemporaryFile(prefix="arkfast-")  # noqa: SIM115 # it lives as long as the process
        self._lock = threading.Lock()
        try:
            with io.FileIO(os.open(path, os.O_RDONLY) if number is None else os.dup(number)) as source:
                while block := source.read(_BLOCK):
                    self._file.write(block)
            self._file.flush()
        except OSError as error:
            self._file.close()
            raise InputError(
                f"{path}: cannot be copied to a temporary file to be read twice ({error.strerror}); write it to a file"
            ) from error
        except BaseException:
            self._file.close()
            raise

    def reader(self) -> io.RawIOBase:
        """A reader at the beginning."""
        return _Reader(self)

    def read(self, at: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``at``."""
        with self._lock:
            self._file.seek(at)
            return self._file.read(size)


class _Reader(io.RawIOBase):
    def __init__(self, copy: _Copy) -> None:
        self._copy, self._at = copy, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")
        block = self._copy.read(self._at, len(view))
        view[: len(block)] = block
        self._at += len(block)
        return len(block)


def _zstd(path: Path, file: io.BufferedReader) -> io.RawIOBase:
    """The decompressed content of a zstd file."""
    if sys.version_info >= (3, 14):
        from compression.zstd import ZstdFile

        return ZstdFile(file)
    try:
        import zstandard
    except ImportError as error:
        raise InputError(
            f"{path}: is compressed by zstd, for which no library is installed: pip install zstandard, or decompress it"
        ) from error
    stream: io.RawIOBase = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    return stream
