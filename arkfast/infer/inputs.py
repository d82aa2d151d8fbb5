"""What a transcription may be given: manifests, recordings, folders of recordings, patterns, and several of these."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from arkfast.data import Fields
from arkfast.data.manifest import source_rows
from arkfast.data.rows import Row, RowError, to_utterance
from arkfast.data.shards import AUDIO_SUFFIXES, TarMember
from arkfast.data.sources import expand, short_names
from arkfast.records import InputError

TELEPHONY = frozenset({"amr", "flv", "ts", "avi", "wv", "mkv", "mov", "gsm", "ulaw", "alaw", "sln", "g722", "au", "nist", "sph", "mp2"})
"""Suffixes of further formats that are read where a file is named on its own. In a shard, fewer are taken for recordings."""
PATTERN = frozenset("*?[")
_ADDRESS = re.compile(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]+:/")

Input = Path | Sequence[Path]
"""One input or several."""


def named(given: Input) -> Path:
    """What messages call an input: the first of several."""
    return given if isinstance(given, Path) else given[0]


def is_recording(path: Path) -> bool:
    """Whether a path is that of a recording, by its suffix."""
    return path.suffix[1:].lower() in AUDIO_SUFFIXES | TELEPHONY or TarMember.parse(str(path)) is not None


def sources(given: Input) -> list[Path]:
    """The manifests and recordings that an input stands for, in order: patterns and braces expanded, folders by the recordings in them.

    Raises:
        InputError: a folder or a pattern holds nothing, a manifest is not there, or one is the address of another machine.
    """
    return [source for path in ([given] if isinstance(given, Path) else given) for source in _sources(path)]


def check_local(path: Path) -> None:
    """Raise ``InputError`` for an address such as ``s3://bucket/name``, which would be taken for a folder of this machine."""
    scheme = _ADDRESS.match(str(path))
    if scheme and not path.exists():
        raise InputError(f"{scheme[0]}…: is an address, and files of this machine alone are read and written; copy it here, or mount it")


def _sources(path: Path) -> list[Path]:
    check_local(path)
    if os.path.isdir(path):
        found = sorted(file for file in path.rglob("*") if is_recording(file) and file.is_file() and not _hidden(file, path))
        if not found:
            raise InputError(f"{path}: is a folder without recordings; give one that has some, or a manifest")
        return found
    if PATTERN & set(str(path)) and not os.path.exists(path):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            raise InputError(f"{path}: no file matches; give another pattern, or a path")
        return [source for match in matches for source in _sources(match)]
    if is_recording(path):
        if os.path.exists(path) or TarMember.parse(str(path)) is not None:
            return [path]
        if "{" not in str(path):
            raise InputError(f"{path}: no such file; give the path of a recording, of a folder of recordings, or of a manifest")
    return expand(path)


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def input_rows(given: Input, *, fields: Fields) -> Iterator[Row]:
    """Each row of the manifests and each recording as ``iter_rows`` would give them; a recording is a row without a reference.

    Several manifests are read one after the other. A recording is called after its path, as far as that tells it from the others.

    Raises:
        InputError: as ``sources``, or a manifest cannot be read.
    """
    found = sources(given)
    for source, name in zip(found, short_names(found), strict=True):
        if is_recording(source):
            yield _row(source, name, fields)
        else:
            yield from source_rows(source, name, fields=fields)


def single_recording(given: Input) -> Path | None:
    """The one recording that an input is; None where it is something else."""
    path = given if isinstance(given, Path) else given[0] if len(given) == 1 else None
    return path if path is not None and is_recording(path) and os.path.isfile(path) else None


def _row(path: Path, name: str, fields: Fields) -> Row:
    try:
        utterance = to_utterance({fields.audio: str(path)}, where=str(path), default_id=name, folder=None, fields=fields)
    except RowError as error:
        return Row(source=path, number=1, raw=str(path), end=0, default_id=name, error=error)
    return Row(source=path, number=1, raw=str(path), end=0, default_id=name, utterance=utterance)
