"""What a transcription may be given: manifests, recordings, folders of recordings, patterns, and several of these."""

from __future__ import annotations

import atexit
import glob
import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from arkfast.data import Fields
from arkfast.data.manifest import source_rows
from arkfast.data.rows import Row, RowError, to_utterance
from arkfast.data.shards import AUDIO_SUFFIXES, TarMember
from arkfast.data.sources import expand, expand_braces, is_tar, short_names
from arkfast.files.remote import RemoteError, address_in, check_remote, fetch, listed, shown
from arkfast.files.spool import Spool
from arkfast.records import InputError

TELEPHONY = frozenset({"amr", "flv", "ts", "avi", "wv", "mkv", "mov", "gsm", "ulaw", "alaw", "sln", "g722", "au", "nist", "sph", "mp2"})
"""Suffixes of further formats that are read where a file is named on its own. In a shard, fewer are taken for recordings."""
PATTERN = frozenset("*?[")
MOST_MANIFEST = 4 << 30
"""Bytes of a manifest of another machine."""
_ADDRESS = re.compile(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]+:/")

Input = Path | Sequence[Path]
"""One input or several."""
Source = Path | str
"""A file here, or the address of one elsewhere."""


def named(given: Input) -> Source:
    """What messages call an input: the first of several."""
    path = given if isinstance(given, Path) else given[0]
    address = address_in(path)
    return path if address is None else shown(address)


def named_path(source: Source) -> Path:
    """A path that has the name of a file, and for one elsewhere nothing of what stands behind its name in the address."""
    return source if isinstance(source, Path) else Path(shown(source).removesuffix("?…"))


def is_recording(source: Source) -> bool:
    """Whether a file is a recording, by its suffix."""
    path = named_path(source)
    return path.suffix[1:].lower() in AUDIO_SUFFIXES | TELEPHONY or TarMember.parse(str(path)) is not None


def sources(given: Input) -> list[Source]:
    """The manifests and recordings that an input stands for, in order: patterns and braces expanded, folders by the recordings in them.

    Raises:
        InputError: a folder or a pattern holds nothing, a manifest is not there, or another machine cannot be asked.
    """
    return [source for path in ([given] if isinstance(given, Path) else given) for source in _sources(path)]


def local_sources(given: Input) -> list[Path]:
    """``sources`` as far as they are files of this machine."""
    return [source for source in sources(given) if isinstance(source, Path)]


def check_local(path: Path) -> None:
    """Raise ``InputError`` for an address such as ``s3://bucket/name``, which would be taken for a folder of this machine."""
    scheme = _ADDRESS.match(str(path))
    if scheme and not path.exists():
        raise InputError(f"{scheme[0]}…: is an address, and outputs are files of this machine; copy them there afterwards, or mount it")


def _sources(path: Path) -> list[Source]:
    if (address := address_in(path)) is not None:
        return [source for one in expand_braces(address) for source in _remote_sources(one)]
    if os.path.isdir(path):
        found = sorted(file for file in path.rglob("*") if is_recording(file) and file.is_file() and not _hidden(file, path))
        if not found:
            raise InputError(f"{path}: is a folder without recordings; give one that has some, or a manifest")
        return list(found)
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
    return list(expand(path))


def _is_pattern(address: str) -> bool:
    """Whether an address stands for whatever matches it. On the web a ? begins a query, and nobody can be asked what matches."""
    return not address.lower().startswith(("http://", "https://")) and bool(PATTERN & set(address))


@cache
def _remote_sources(address: str) -> list[Source]:
    """``sources`` of an address. It is asked once, so that every reading of the input has the same files."""
    check_remote(address)
    if is_recording(address) and not _is_pattern(address):
        return [address]
    try:
        found = listed(address)
    except RemoteError as error:
        raise InputError(f"{shown(address)}: {error}") from error
    if not found:
        if _is_pattern(address):
            raise InputError(f"{shown(address)}: no file matches; give another pattern, or a manifest")
        return [address]
    if not _is_pattern(address):
        found = [name for name in found if is_recording(name) and not any(part.startswith(".") for part in named_path(name).parts)]
        if not found:
            raise InputError(f"{shown(address)}: is a folder without recordings; give one that has some, or a manifest")
    return list(found)


@cache
def _manifests() -> Spool:
    """Where copies of manifests are, for as long as this process lives."""
    spool = Spool(None, prefix="arkfast-manifests-", flag="TMPDIR")
    atexit.register(spool.close)
    return spool


_copies: dict[str, Path] = {}


def _copy_of(address: str) -> Path:
    """A manifest of another machine as a file here. It is fetched once, however often it is read."""
    if address not in _copies:
        copy = _manifests().path / f"{len(_copies)}-{named_path(address).name}"
        fetch(address, copy, most=MOST_MANIFEST)
        _copies[address] = copy
    return _copies[address]


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def input_rows(given: Input, *, fields: Fields) -> Iterator[Row]:
    """Each row of the manifests and each recording as ``iter_rows`` would give them; a recording is a row without a reference.

    Several manifests are read one after the other. A recording is called after its path, as far as that tells it from the others.

    Raises:
        InputError: as ``sources``, or a manifest cannot be read.
    """
    found = sources(given)
    for source, name in zip(found, short_names([named_path(source) for source in found]), strict=True):
        if is_recording(source):
            yield _row(source, name, fields)
        elif isinstance(source, str):
            if is_tar(named_path(source)):
                raise InputError(f"{shown(source)}: is a tar file of another machine, of which single clips cannot be read; copy it here")
            yield from source_rows(_copy_of(source), name, fields=fields, origin=source)
        else:
            yield from source_rows(source, name, fields=fields)


def single_recording(given: Input) -> Path | None:
    """The one recording that an input is; None where it is something else."""
    path = given if isinstance(given, Path) else given[0] if len(given) == 1 else None
    if path is not None and (address := address_in(path)) is not None:
        return path if is_recording(address) and not _is_pattern(address) else None
    return path if path is not None and is_recording(path) and os.path.isfile(path) else None


def _row(source: Source, name: str, fields: Fields) -> Row:
    where = str(source) if isinstance(source, Path) else shown(source)
    path = Path(where)
    try:
        utterance = to_utterance({fields.audio: str(source)}, where=where, default_id=name, folder=None, fields=fields)
    except RowError as error:
        return Row(source=path, number=1, raw=where, end=0, default_id=name, error=error)
    return Row(source=path, number=1, raw=where, end=0, default_id=name, utterance=utterance)
