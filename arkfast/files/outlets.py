"""Outputs that are written through because nothing can take their place: devices, pipes, and what the process was started with.

``-`` is standard output. ``/dev/stdout``, ``/dev/stderr`` and ``/dev/fd/N`` are the process's own open files, whatever stands behind
them: a shell's ``>> all.jsonl`` is added to and not begun anew.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from io import FileIO
from pathlib import Path

STANDARD = Path("-")
"""What a user gives for standard input and standard output."""

_NAMES = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_NUMBERED = re.compile(r"(?:/dev/fd|/proc/(?:self|thread-self|\d+)/fd)/(\d+)")
_MOST_LINKS = 40


def descriptor_of(path: Path, *, standard: int = 1) -> int | None:
    """The number of the open file of this process that a path stands for; None where it stands for none.

    Args:
        path: as a user gave it, or a link to such a path.
        standard: what ``-`` is: 0 for an input, 1 for an output.
    """
    if path == STANDARD:
        return standard
    for _ in range(_MOST_LINKS):
        name = str(path)
        if name in _NAMES:
            return _NAMES[name]
        if (found := _NUMBERED.fullmatch(name)) and (not name.startswith("/proc/") or name.split("/")[2] in ("self", str(os.getpid()))):
            return int(found[1])
        try:
            path = path.parent / os.readlink(path)
        except (OSError, ValueError):
            return None
    return None


def is_outlet(path: Path) -> bool:
    """Whether an output is written through: an open file of the process, or something that is neither a regular file nor a folder."""
    if descriptor_of(path) is not None:
        return True
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False  # nothing stands there yet
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def is_standard_output(path: Path | None) -> bool:
    """Whether what is written to the path comes out where ``print`` writes, so that nothing else may be printed there."""
    if path is None or not is_outlet(path):
        return False
    if descriptor_of(path) == 1:
        return True
    with suppress(OSError):
        number = descriptor_of(path)
        ours = os.fstat(1)
        there = path.stat() if number is None else os.fstat(number)
        # /dev/null is the same file for everybody and mixes nothing.
        return os.path.samestat(there, ours) and not os.path.samestat(ours, os.stat(os.devnull))
    return False


def open_outlet(path: Path) -> FileIO:
    """Open what ``is_outlet`` said is one, to write; each write goes out at once.

    Raises:
        OSError: the system refuses.
    """
    number = descriptor_of(path)
    return FileIO(os.open(path, os.O_WRONLY) if number is None else os.dup(number), "w")


def write_whole(file: FileIO, data: bytes) -> None:
    """Write all of ``data``, although a pipe may take less at a time.

    Raises:
        OSError: the system refuses; part of the data may be out.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) or 0 :]
