"""Recordings inside tar files: what a shard holds, and a member's bytes without extracting anything.

Shards are laid out as WebDataset's: members of one sample stand together and share their name up to the first dot. A member is written as
``shard.tar::clip.flac@1536+20480``: file, name, first byte and size, so that it is read with one seek. Names are labels only: nothing is
ever written under them, and links are not followed.
"""

from __future__ import annotations

import functools
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from arkfast.records import InputError, Utterance

BLOCK = 512  # bytes; everything in a tar file begins at a multiple of it
MAX_TEXT = 4 << 20  # bytes of a .json or .txt member: a row, not a data set
MAX_EXTENSION = 1 << 20  # bytes of a name or of attributes that stand before a member's header: a system's longest path has 4 KiB
AUDIO_SUFFIXES = frozenset(
    {"aac", "aif", "aifc", "aiff", "au", "caf", "flac", "m4a", "mp3", "mp4", "oga", "ogg", "opus", "rf64", "w64", "wav", "webm", "wma"}
)
TEXT_SUFFIXES = ("json", "txt")

_REFERENCE = re.compile(r"(?P<path>.+?\.(?i:tar))::(?P<name>.+?)(?:@(?P<offset>\d+)\+(?P<size>\d+))?", re.DOTALL)


@dataclass(frozen=True)
class TarMember:
    """A file inside a tar file."""

    path: str
    """The tar file."""
    name: str
    """The member's name."""
    offset: int | None = None
    """Its first byte within the tar file; None when it has to be looked up."""
    size: int | None = None
    """Its length in bytes; None when it has to be looked up."""

    @classmethod
    def parse(cls, reference: str) -> TarMember | None:
        """The member that ``reference`` names, or None when it is an ordinary path."""
        if "::" not in reference or not (match := _REFERENCE.fullmatch(reference)):
            return None
        offset, size = match["offset"], match["size"]
        return cls(match["path"], match["name"], None if offset is None else int(offset), None if size is None else int(size))

    def __str__(self) -> str:
        return self.label if self.offset is None else f"{self.label}@{self.offset}+{self.size}"

    @property
    def label(self) -> str:
        """What errors call it."""
        return f"{self.path}::{self.name}"

    def read(self) -> bytes:
        """The member's bytes.

        Raises:
            InputError: the tar file is missing or cut, has no such member, or holds something else at that place by now. The message begins
                with the member's label.
        """
        try:
            with open(self.path, "rb") as file:
                offset, size = (self.offset, self.size) if self.offset is not None and self.size is not None else self._find(file)
                total = os.fstat(file.fileno()).st_size
                if offset % BLOCK or not BLOCK <= offset <= total:
                    raise InputError(f"{self.label}: the shard has no member at byte {offset}; scan it again")
                file.seek(offset - BLOCK)
                self._check_header(file.read(BLOCK), size)
                # Before reading: memory is taken for all of ``size`` at once.
                if offset + size > total:
                    raise InputError(
                        f"{self.label}: truncated: it has {size} bytes and the shard ends after {total - offset}; get the whole shard"
                    )
                return file.read(size)
        except OSError as error:
            raise InputError(f"{self.label}: {self.path} cannot be read ({error.strerror})") from error

    def _find(self, file: BinaryIO) -> tuple[int, int]:
        state = os.fstat(file.fileno())
        found = _index(os.path.abspath(self.path), state.st_size, state.st_mtime_ns).get(self.name)
        if found is None:
            raise InputError(f"{self.label}: the shard has no such member")
        return found

    def _check_header(self, block: bytes, size: int) -> None:
        """A shard that was written anew would otherwise give another clip's sound under this clip's text."""
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            header = None
        # A name of more than 100 bytes, or of others than ASCII, stands elsewhere, and the header holds what fits.
        whole = self.name.isascii() and len(self.name) <= 100
        if header is None or not header.isreg() or header.size != size or (whole and header.name != self.name):
            raise InputError(f"{self.label}: the shard holds something else at that place: it was changed; scan it again")


@dataclass
class Sample:
    """Members of a shard that share a key, as they were met."""

    key: str
    """Path and name up to the first dot."""
    number: int
    """Which sample of the shard it is, from 1."""
    audio: list[TarMember] = field(default_factory=list)
    """Members that are recordings by their suffix."""
    texts: dict[str, bytes] = field(default_factory=dict)
    """Contents of ``.json`` and ``.txt`` members, by all that follows the key's dot in lower case."""
    fault: str | None = None
    """Why the sample is of no use, whatever else it holds; else None."""
    end: int = 0
    """Bytes of the shard up to its end."""

    def text(self, suffix: str) -> bytes | None:
        """The content of the one member with this suffix; the plain ``key.suffix`` wins over ``key.more.suffix``."""
        if suffix in self.texts:
            return self.texts[suffix]
        others = [content for name, content in self.texts.items() if name.endswith(f".{suffix}")]
        return others[0] if len(others) == 1 else None


class DamagedShard(InputError):
    """The tar file ends or breaks before its end mark; the samples before it were good."""


def iter_samples(path: Path) -> Iterator[Sample]:
    """The samples of a shard in order, in constant memory.

    Members of other suffixes, folders, links and hidden files are passed over. A sample has recordings or texts or both; the caller
    decides what it needs.

    Raises:
        InputError: the file cannot be opened.
        DamagedShard: it is no tar file or is damaged; raised after the samples before the damage.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a tar file") from error
    with file:
        total = os.fstat(file.fileno()).st_size
        number = 0
        sample: Sample | None = None
        fault: DamagedShard | None = None
        try:
            for info, end in _members(file, path, total):
                key, suffix = _split(info.name)
                kind = suffix.rpartition(".")[2]
                if not key or not (kind in AUDIO_SUFFIXES or kind in TEXT_SUFFIXES):
                    continue
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample
                    number += 1
                    sample = Sample(key, number)
                sample.end = end
                if info.offset_data + info.size > total:
                    present = total - info.offset_data
                    sample.fault = f"truncated: {info.name} has {info.size} bytes and the shard ends after {present}; get the whole shard"
                    break
                if kind in AUDIO_SUFFIXES:
                    sample.audio.append(TarMember(str(path), info.name, info.offset_data, info.size))
                elif info.size > MAX_TEXT:
                    sample.fault = f"{info.name} has {info.size} bytes; what belongs to one clip has at most {MAX_TEXT}"
                else:
                    file.seek(info.offset_data)
                    sample.texts[suffix] = file.read(info.size)
        except DamagedShard as error:
            fault = error
        if sample is not None:
            yield sample
        if fault is not None:
            raise fault


def open_audio(utterance: Utterance) -> tuple[str | bytes, str | None]:
    """What ``audio.load`` and ``audio.duration`` take for an utterance whose audio is a path: (source, what errors call it).

    A path stays a path; a tar member becomes its bytes.

    Raises:
        InputError: the tar member cannot be read.
    """
    reference = utterance.audio
    assert isinstance(reference, str), "samples in memory need no opening"
    member = TarMember.parse(reference)
    if member is None:
        return reference, utterance.where or None
    # A row of the shard itself is named after the shard already.
    inside = utterance.where.startswith(f"{member.path}::")
    name = member.label if inside or not utterance.where else f"{utterance.where}: {member.label}"
    try:
        return member.read(), name
    except InputError as error:
        if name == member.label:
            raise
        raise InputError(f"{utterance.where}: {error}") from error


class _Header(tarfile.TarInfo):
    """A header whose extensions are bounded: tarfile reads a long name or a pax record whole, whatever size it claims."""

    _EXTENSIONS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """tarfile's entry to the reading of what follows a header, which it offers to subclasses."""
        if self.type in self._EXTENSIONS and self.size > MAX_EXTENSION:
            what = f"the header extension at byte {self.offset} has {self.size} bytes, over the limit of {MAX_EXTENSION}"
            raise tarfile.ReadError(what)
        return super()._proc_member(archive)  # type: ignore[misc]


class _Archive(tarfile.TarFile):
    """An archive whose list of members can be emptied while it is read."""

    members: list[tarfile.TarInfo]


def _members(file: BinaryIO, path: Path, total: int) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """(member, bytes of the file up to its end) of each plain file, checked to reach the end mark."""
    try:
        archive = _Archive.open(fileobj=file, mode="r:", errors="surrogateescape", tarinfo=_Header)  # the caller closes the file
        while (info := archive.next()) is not None:
            archive.members = []  # tarfile remembers every member, which a large shard's reader cannot afford
            if info.isreg() and not info.issparse():
                yield info, min(archive.offset, total)
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        raise DamagedShard(f"{path}: not a plain tar file, or damaged ({error}); compressed ones must be decompressed") from error
    _check_end(file, path, archive.offset)


def _check_end(file: BinaryIO, path: Path, offset: int) -> None:
    """tarfile takes whatever it cannot read for the end; a whole archive ends with blocks of zeros and nothing after them."""
    file.seek(offset)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        raise DamagedShard(f"{path}: truncated: it ends at byte {offset + len(block)} without an end mark; get the whole shard")
    if any(block):
        raise DamagedShard(f"{path}: damaged: no member's header at byte {offset}; what follows cannot be read")
    while rest := file.read(1 << 16):
        if rest.strip(b"\0"):
            raise DamagedShard(f"{path}: holds more after its end mark: are these archives joined? give each as its own file")


def _split(name: str) -> tuple[str, str]:
    """WebDataset's (key, suffix): the file name's first dot divides them; an empty key for what is no part of a sample."""
    path = PurePosixPath(name)
    stem, _, suffix = path.name.partition(".")
    if not stem or (stem.startswith("__") and stem.endswith("__")):
        return "", ""
    return str(path.with_name(stem)), suffix.lower()


@functools.lru_cache(maxsize=64)
def _index(path: str, size: int, _mtime_ns: int) -> dict[str, tuple[int, int]]:
    """Name → (first byte, size) of a shard's members; of a repeated name the last, as tar has it."""
    with open(path, "rb") as file:
        return {info.name: (info.offset_data, info.size) for info, _ in _members(file, Path(path), size)}
