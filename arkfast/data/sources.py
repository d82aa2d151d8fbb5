"""What a manifest path stands for: one file or a set of them, JSONL or tar."""

from __future__ import annotations

import itertools
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from arkfast.files import STANDARD
from arkfast.files.inputs import local_path
from arkfast.files.outlets import descriptor_of
from arkfast.files.remote import shown
from arkfast.records import InputError

Format = Literal["auto", "jsonl", "nemo", "tar"]
"""What a manifest is: ``auto`` tells tar shards by their name and NeMo rows by their fields."""

MAX_FILES = 100_000  # more than any set of shards, fewer than a slip in the braces gives

_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def expand(path: str | Path) -> list[Path]:
    """The files that a manifest path names, in order, each of which is there. ``-`` is standard input.

    ``{000000..000009}`` counts (with the zeros of the first bound) and ``{a,b}`` lists, as in a shell; several in one path multiply. A file
    whose name has such braces is itself.

    Raises:
        InputError: a file is not there, is a folder, or there are more than 100,000.
    """
    text = local_path(str(path))
    if Path(text) == STANDARD:
        return [STANDARD]
    names = [text] if Path(text).exists() else expand_braces(text)
    paths = [Path(name) for name in names]
    for found in paths:
        _check(found)
    return paths


def short_names(paths: Sequence[Path]) -> list[str]:
    """What tells the files of a set apart: their names, or where names repeat the ends of their paths, all of the same least depth.

    A pipe that a shell made is called ``input``, since its own name is a number that the next shell chooses otherwise.
    """
    if len(paths) == 1 and descriptor_of(paths[0], standard=0) is not None:
        return ["input"]
    most = max((len(path.parts) for path in paths), default=1)
    for depth in range(1, most + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def is_tar(path: Path, form: Format = "auto") -> bool:
    """Whether a manifest file is a tar shard: by ``form``, else by its name.

    Raises:
        InputError: it is compressed, or is to be read as tar and is not named so.
    """
    name = path.name.lower()
    if name.endswith(_COMPRESSED):
        raise InputError(f"{path}: clips in a compressed tar file cannot be read one by one; decompress it")
    if form == "tar" and not name.endswith(".tar"):
        raise InputError(f"{path}: the name of a shard must end in .tar, because references to its clips are told by it")
    return form == "tar" or (form == "auto" and name.endswith(".tar"))


def _check(path: Path) -> None:
    try:
        state = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}); give the path of a JSONL manifest or of tar shards") from error
    if stat.S_ISDIR(state.st_mode):
        raise InputError(f"{path}: cannot be read (it is a folder); give the path of a JSONL manifest or of tar shards")


def expand_braces(text: str) -> list[str]:
    """``text`` with every brace expression replaced by each of its values."""
    parts: list[list[str]] = []
    at, count = 0, 1
    for match in _BRACES.finditer(text):
        values = _values(match, text)
        count *= len(values)
        parts += [[text[at : match.start()]], values]
        at = match.end()
        if count > MAX_FILES:
            raise InputError(f"{shown(text)}: its braces stand for more than {MAX_FILES} files")
    parts.append([text[at:]])
    return ["".join(choice) for choice in itertools.product(*parts)]


def _values(match: re.Match[str], text: str) -> list[str]:
    first, last, listed = match.groups()
    if listed is not None:
        return [value.strip() for value in listed.split(",")]
    low, high = int(first), int(last)
    if low > high:
        raise InputError(f"{shown(text)}: the braces count down from {first} to {last}; write the lower number first")
    if high - low >= MAX_FILES:
        raise InputError(f"{shown(text)}: its braces stand for more than {MAX_FILES} files")
    return [f"{number:0{len(first)}}" for number in range(low, high + 1)]
