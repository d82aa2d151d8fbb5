"""Writes files and folders so that they appear whole or not at all, and are on disk once they have their name.

What is written stands beside its destination until it is complete, and takes the destination's name then. A writer that raises, also on a
full disk, leaves the destination as it was and nothing beside it. What was there before is not removed until its replacement is on disk.

**Names.** ``.NAME.new`` is what is being written for NAME, and ``.NAME.old`` is what NAME was, which is kept until the new one is safe. A
killed process leaves these two at most, and ``.NAME.lock``. The next writer of NAME clears them away. Where NAME is missing it first puts
``.NAME.old`` back: a folder is moved aside before the new one is moved in, and the kill came in between. ``sweep`` does this for many names
of a folder at once. One process at a time writes NAME. Where several may (``NewFolder(shared=True)``), each has a ``.NAME.TOKEN.new`` of
its own, and the next writer clears one away when nothing in it has changed for an hour.

**On disk.** Every file is fsynced before it takes its name, with the folders inside a new folder, and the folder that holds the name is
fsynced afterwards, as are those that were made on the way. Where the system cannot open a folder (Windows, or one that may not be read),
its fsync is left out. Several files take their names one after the other, when all of them are on disk. A kill in between leaves some new
and some old, each of them whole. A ``LineFile`` grows in place: a kill loses no line of it, a power cut may lose those since ``sync``.

**Devices and pipes.** What is neither a regular file nor a folder is written through and never replaced. So are ``-`` (standard output),
``/dev/stdout`` and other open files of the process. ``new_files`` copies a file there when it is complete, a ``LineFile`` each line.

**Two runs.** Whoever writes over a long time (``jsonl_files``, ``replace_folder``) holds ``.NAME.lock``; a second run is refused at once.

**Links.** A file given as a symbolic link is written where the link points, and the link stays. A folder's link is replaced by the new
folder, and what it pointed to stays.

**Errors.** Where nothing else is said, ``InputError`` is raised when the system refuses, and it names the destination. Other errors of a
block are raised as they are. Only those of a full disk, whichever library met it, name the destination too.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import BinaryIO, Literal

from arkfast.files.errors import cannot_write, explain, naming
from arkfast.files.json_text import json_line, json_text
from arkfast.files.lock import Lock, LockHeld
from arkfast.files.names import clear, leftovers, lock_name, new_name, old_name, remove, sweep
from arkfast.files.outlets import STANDARD, is_outlet, is_standard_output, open_outlet, write_whole
from arkfast.records import InputError

__all__ = [
    "STANDARD", "LineFile", "Lock", "LockHeld", "NewFolder", "Point", "commit", "destination", "is_outlet", "is_standard_output",
    "json_line", "json_text", "jsonl_files", "leftovers", "lock_output", "make_folder", "move", "naming", "new_file", "new_files",
    "replace_folder", "sweep", "write_bytes", "write_text",
]  # fmt: skip

Point = Literal["begin", "write", "fsync", "commit"]
"""Where a write can fail: before its temporary is made, before this module writes bytes, before a file or folder is fsynced, before
something takes its name."""

fault: Callable[[Path, Point], None] | None = None
"""For tests. It is called at each point of every write with the destination (``begin``, ``commit``) or with what is written or fsynced, and
raises what the system would. Files that other libraries write into a ``NewFolder`` or a ``new_file`` pass it when they are fsynced."""

_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP}  # what file systems answer that do not fsync folders
_STALE_SECONDS = 3600.0
_BLOCK = 1 << 20  # bytes that are copied at a time
_THREADS = 16  # so many files are fsynced at once: a journaling file system writes them down together, many times faster


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, line ends as they are, lone surrogates as JSON escapes them; missing folders are made."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file; missing folders are made."""
    with new_file(path) as temporary, naming(path):
        _reach(temporary, "write")
        temporary.write_bytes(data)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields a path that anything may write a file to. The file takes its name when the block ends."""
    with new_files([path]) as (temporary,):
        yield temporary


@contextmanager
def new_files(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yields paths to write files to, in the order of ``paths``. The files take their names together when the block ends.

    Each path stands once, and missing folders are made. Where one file cannot take its name, none does. Only on a file system without hard
    links do those before it keep theirs.
    """
    with ExitStack() as stack:
        targets: list[Path] = []
        temporaries: list[Path] = []
        try:
            for number, path in enumerate(paths):
                with naming(path):
                    targets.append(destination(path))
                    if is_outlet(path):
                        folder = stack.enter_context(TemporaryDirectory(prefix="arkfast-", ignore_cleanup_errors=True))
                        temporaries.append(Path(folder) / f"{number}.new")
                    else:
                        temporaries.append(_begin(targets[-1]))
            yield temporaries
            outlets = [(file, path) for file, path in zip(temporaries, paths, strict=True) if is_outlet(path)]
            for file, path in outlets:
                _write_through(file, path)
            with naming(*paths):
                _commit([pair for pair in zip(temporaries, targets, strict=True) if pair[0] not in {file for file, _ in outlets}])
        except BaseException as error:
            clear(*temporaries)
            explain(error, *paths)
            raise


def _write_through(temporary: Path, path: Path) -> None:
    """Copy a complete file into what is written through. Standard output that is closed is a ``BrokenPipeError``, as for ``print``."""
    try:
        _reach(path, "commit")
        with temporary.open("rb") as source, open_outlet(path) as outlet:
            while block := source.read(_BLOCK):
                write_whole(outlet, block)
    except BrokenPipeError as error:
        if is_standard_output(path):
            raise
        raise cannot_write(error, path) from error
    except OSError as error:
        raise cannot_write(error, path) from error


@contextmanager
def jsonl_files(paths: Sequence[Path]) -> Iterator[Callable[[int, Mapping[str, object]], None]]:
    """Write JSONL files as ``new_files``, row by row: yields a function that appends a row to the file with a number.

    Raises:
        LockHeld: another run writes one of the files.
    """
    with ExitStack() as stack:
        for path in paths:
            with naming(path):
                if not is_outlet(path):
                    stack.enter_context(lock_output(path))
        temporaries = stack.enter_context(new_files(paths))
        files: list[BinaryIO] = []
        for path, temporary in zip(paths, temporaries, strict=True):
            with naming(path):
                files.append(stack.enter_context(temporary.open("xb")))

        def write(number: int, row: Mapping[str, object]) -> None:
            with naming(paths[number]):
                _reach(temporaries[number], "write")
                files[number].write(json_line(row))

        yield write
        for path, temporary, file in zip(paths, temporaries, files, strict=True):
            with naming(path):
                file.flush()
                _check_own(file, temporary)


def lock_output(path: Path, *, folder: bool = False) -> Lock:
    """The lock of a file or folder that is to be written over a long time. The folder that it is to stand in is made where it is missing.

    Raises:
        OSError: the system refuses to make the folder.
    """
    target = path.absolute() if folder else destination(path)
    make_folder(target.parent)
    return Lock(lock_name(target), target=path)


class NewFolder:
    """A folder to fill, which takes its name when it is complete. What has the name until then is removed only afterwards.

    As a block it yields the path to fill, commits at the end, and discards when the block raises.

    Args:
        target: where the folder is to stand; missing parents are made.
        shared: whether other processes may make the same folder at the same time. Then the first that is complete stays, and a folder that
            is there and not empty is not replaced.
    """

    def __init__(self, target: Path, *, shared: bool = False) -> None:
        self.target = target if target.name not in ("", "..") else target.resolve()
        self._shared = shared
        if is_outlet(target):
            raise InputError(f"{target}: is a device or a pipe, and no folder can stand there; give another path")
        with naming(target):
            self.path = _begin(self.target, shared=shared)
            self.path.mkdir()

    def sync(self) -> None:
        """Have all that was written so far on disk, as ``commit`` does first."""
        with naming(self.target):
            _sync_tree(self.path)

    def commit(self) -> None:
        """Give the complete folder its name."""
        try:
            with naming(self.target):
                if self._shared and os.path.lexists(self.target):
                    self.target.rmdir()
                _commit([(self.path, self.target)], keep=not self._shared)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove what was written. A folder that has its name already stays."""
        clear(self.path)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.commit()
            return
        self.discard()
        explain(error, self.target)


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Fill a ``NewFolder`` with ``write`` and put it in ``target``'s place.

    Raises:
        LockHeld: another run is filling it.
    """
    with ExitStack() as stack:
        with naming(target):
            if not is_outlet(target):
                stack.enter_context(lock_output(target, folder=True))
        write(stack.enter_context(NewFolder(target)))


def commit(temporary: Path, target: Path) -> None:
    """Give a complete file, in the folder of ``target``, the name that ``destination`` said.

    Raises:
        OSError: the system refuses. Both files are as they were.
    """
    _commit([(temporary, target)])


def move(path: Path, to: Path) -> None:
    """Give a file or folder another name on the same file system, in place of a file that has it."""
    if is_outlet(to):
        raise InputError(f"{to}: is a device or a pipe, whose place no file can take; give another path")
    with naming(to):
        _reach(to, "commit")
        os.replace(path, to)
        for folder in dict.fromkeys((to.parent, path.parent)):
            _sync(folder, folder=True)


def make_folder(path: Path) -> None:
    """Make a folder where there is none, and the folders above it.

    Raises:
        OSError: the system refuses.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        _sync(folder.parent, folder=True)


def destination(path: Path) -> Path:
    """Where a file that is given as ``path`` comes to stand: the target of a link. What is written through stays as it is given.

    The path of every file passes here before it is written.
    """
    if is_outlet(path):
        return path
    try:
        target = path.resolve()
    except RuntimeError as error:  # a loop of links, before Python 3.13
        raise cannot_write(OSError(errno.ELOOP, os.strerror(errno.ELOOP)), path) from error
    if target.is_dir():
        raise InputError(f"{path}: is a folder; give the path of a file to write")
    return target


class LineFile:
    """A file that grows by whole lines, each handed to the operating system at once. What the system refuses is an ``OSError``.

    Args:
        path: the file, in a folder that is there; or what is written through, where no line can be taken back.
        fresh: whether it begins empty; otherwise lines are added to those that it has.
    """

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self.path = path
        _reach(path, "begin")
        self._through = is_outlet(path)
        self._entered = self._through or os.path.lexists(path)
        self._file = open_outlet(path) if self._through else FileIO(path, "w" if fresh else "a")
        self._size = os.fstat(self._file.fileno()).st_size

    def add(self, line: bytes) -> None:
        """Add a line, which ends in a line feed; where it cannot be written, no part of it stays."""
        try:
            _reach(self.path, "write")
            write_whole(self._file, line)
        except BaseException:
            if not self._through:
                with suppress(OSError):
                    self._file.truncate(self._size)
                    self._file.seek(self._size)
            raise
        self._size += len(line)

    def sync(self) -> None:
        """Have all lines on disk, and the file's name where that is new."""
        if self._through:
            return
        _reach(self.path, "fsync")
        os.fsync(self._file.fileno())
        if not self._entered:
            _sync(self.path.parent, folder=True)
            self._entered = True

    def check_own(self) -> None:
        """Raise EBUSY where another process has put a file of its own at the path."""
        if self._through:
            return
        _check_own(self._file, self.path)

    def close(self) -> None:
        """Add no more."""
        self._file.close()


def _reach(path: Path, point: Point) -> None:
    if fault is not None:
        fault(path, point)


def _begin(target: Path, *, shared: bool = False) -> Path:
    """Clear away what earlier writers left, and say where this one may write."""
    _reach(target, "begin")
    make_folder(target.parent)
    if shared:
        theirs = re.compile(rf"\.{re.escape(target.name)}\.[^.]+\.new")
        clear(*(path for path in target.parent.iterdir() if theirs.fullmatch(path.name) and _is_stale(path)))
        return target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")
    new, old = new_name(target), old_name(target)
    if os.path.lexists(old) and not os.path.lexists(target):
        os.replace(old, target)
    remove(new)
    remove(old)
    return new


def _is_stale(folder: Path) -> bool:
    try:
        return time.time() - max(path.lstat().st_mtime for path in (folder, *folder.rglob("*"))) > _STALE_SECONDS
    except OSError:  # it is going right now
        return False


def _commit(pairs: Sequence[tuple[Path, Path]], *, keep: bool = True) -> None:
    """Have every temporary on disk, then give each its name; where any of it fails, nothing has changed.

    Args:
        pairs: (temporary, destination).
        keep: False where a folder that is not empty must not be replaced.
    """
    for temporary, _ in pairs:
        if temporary.is_dir():
            _sync_tree(temporary)
        else:
            _sync(temporary)
    renamed: list[tuple[Path, Path, bool]] = []
    try:
        for temporary, target in pairs:
            _reach(target, "commit")
            renamed.append((temporary, target, _keep(target) if keep else True))
            os.replace(temporary, target)
        for folder in dict.fromkeys(target.parent for _, target in pairs):
            _sync(folder, folder=True)
    except BaseException:
        for temporary, target, kept in reversed(renamed):
            with suppress(OSError):
                _put_back(temporary, target, kept)
        raise
    clear(*(old_name(target) for _, target in pairs))


def _keep(target: Path) -> bool:
    """Keep what stands at ``target`` as ``.NAME.old``; whether the new one can be taken back without loss."""
    if os.path.lexists(target):
        remove(old_name(target))  # of a ``commit`` that was killed
    if target.is_symlink() or target.is_dir():
        os.replace(target, old_name(target))
    elif target.exists():
        try:
            os.link(target, old_name(target))  # a second name, so that the first one is never missing
        except OSError:  # no hard links here
            return False
    return True


def _put_back(temporary: Path, target: Path, kept: bool) -> None:
    old = old_name(target)
    if kept and not os.path.lexists(temporary):
        os.replace(target, temporary)
    if os.path.lexists(old) and not os.path.lexists(target):
        os.replace(old, target)
    else:
        remove(old)


def _sync_tree(folder: Path) -> None:
    """Fsync every file in a folder, then every folder, the innermost first."""
    found = [path for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(_sync, (path for path in found if path.is_file())))
    for path in sorted((path for path in found if path.is_dir()), reverse=True):
        _sync(path, folder=True)


def _sync(path: Path, *, folder: bool = False) -> None:
    _reach(path, "fsync")
    try:
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows writes nothing down for a reader
    except PermissionError:
        if folder:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (folder and error.errno in _NO_FOLDER_SYNC):
            raise
    finally:
        os.close(descriptor)


def _check_own(file: BinaryIO | FileIO, path: Path) -> None:
    """Two processes that write one file at a time would each take the other's temporary for its own."""
    if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
        raise OSError(errno.EBUSY, "another process writes it too")
