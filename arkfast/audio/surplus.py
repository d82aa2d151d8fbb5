"""Whether a file holds more audio than its header promises, which the decoder would leave out in silence.

That happens where files were joined byte by byte, and where a recorder stopped before it wrote the sizes into its header. A header whose
size is still 0 is read to the file's end; every other one that promises too little is a reason to refuse.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from arkfast.audio.container import UNKNOWN_SIZE, announced_size, caf_chunk, chunks, first_of, mp4_box
from arkfast.audio.mp3 import behind_tags
from arkfast.audio.sniff import MP4_BOXES

_HEADS = (b"RIFF", b"RIFX", b"RF64", b"FORM", b"riff\x2e\x91\xcf\x11", b".snd", b"caff", b"NIST_1A", b"\x1a\x45\xdf\xa3", b"fLaC", b"OggS")
# With video, with audio, with both; the header's length and the size of no tag follow.
_FLV_HEADS = tuple(b"FLV\x01" + kind + b"\0\0\0\x09\0\0\0\0" for kind in (b"\x01", b"\x04", b"\x05"))
_LEAST_SECONDS = 0.1
_LEAST_HEADER = 24  # bytes; a size below that was never written
_MOST_CHUNKS = 1000
_PIECE = 1 << 20  # bytes read at a time


class _Data(NamedTuple):
    """The audio of a file by its header."""

    size_at: int
    """Where its size stands."""
    start: int
    """Its first byte."""
    size: int | None
    """Its bytes; None where the writer did not know."""


def surplus(stream: BinaryIO, seconds: float) -> str | None:
    """Why the decoder would leave out what stands at the file's end, or None when the bytes show nothing of the kind.

    Args:
        stream: the whole file, seekable.
        seconds: how long the decoder says it is; 0 where it does not say, and a second recording alone is looked for.

    Returns:
        A clause for an error message. Tags, zeros, chunks of metadata and less than 0.1 s pass.
    """
    size = stream.seek(0, os.SEEK_END)
    head = _at(stream, 0, 1024)
    if head.startswith(b"caff"):
        end = 8
        for _, chunk_end in chunks(stream, 8, size, caf_chunk):
            end = min(chunk_end, size)
    elif head[4:8] in MP4_BOXES:
        return _second_movie(stream, size)
    elif head.startswith(b"FLV\x01"):
        second = first_of(stream, 9, _FLV_HEADS)
        return None if second is None else _joined(second)
    elif head[:4] in (b"RIFF", b"RIFX", b"RF64", b"FORM"):
        if head[8:12] == b"AVI ":
            end = _last_riff_end(stream, size)
        elif head[8:12] in (b"WAVE", b"AIFF", b"AIFC"):
            end = _last_chunk_end(stream, head, size)
        else:
            return None
    else:
        announced = announced_size(head)
        if announced is None or announced < _LEAST_HEADER:
            return None
        end = announced
    rest = _behind(stream, end, size)
    if rest is None:
        return None
    if _at(stream, rest, 16).startswith(_HEADS):
        return _joined(rest)
    if (size - rest) * seconds / max(1, end) <= _LEAST_SECONDS:
        return None
    return (
        f"its header ends it at byte {end} ({seconds:g} s), and {size - end} bytes follow that are no chunk of metadata, as where a "
        "recorder stopped early or files were joined: export it again"
    )


def unfinished(stream: BinaryIO) -> tuple[int, bytes] | None:
    """Where a header's size of the audio was left at 0 although audio follows, and the bytes that belong there; None where that is not so.

    Args:
        stream: the whole file, seekable.
    """
    size = stream.seek(0, os.SEEK_END)
    head = _at(stream, 0, 1024)
    data = _audio(stream, head, size)
    if data is None or data.start >= size:
        return None
    rest = size - data.start
    if data.size != 0 or _behind(stream, data.start, size) is None:
        return None
    if head.startswith(b"caff"):  # libsndfile cannot read the size −1, which is legal there, either
        return data.size_at, struct.pack(">q", rest)
    if _is_chunk(stream, data.start, size, _order(head)):
        return None
    if head.startswith(b".snd"):
        return data.size_at, b"\xff" * 4
    if head.startswith(b"RF64"):
        return data.size_at, struct.pack("<Q", rest)
    short = min(rest, UNKNOWN_SIZE - 1)
    return data.size_at, struct.pack(_order(head) + "I", short + 8 if head.startswith(b"FORM") else short)


def _audio(stream: BinaryIO, head: bytes, size: int) -> _Data | None:
    """The chunk with the audio."""
    if head.startswith(b".snd") and len(head) >= 24:
        return _Data(8, *struct.unpack_from(">II", head, 4))
    if head.startswith(b"caff"):
        at = 8
        for _ in range(_MOST_CHUNKS):
            chunk = _at(stream, at, 12)
            if len(chunk) < 12:
                return None
            length = struct.unpack_from(">q", chunk, 4)[0]
            if chunk[:4] == b"data":
                return _Data(at + 4, at + 12, max(0, length))
            if not 0 <= length <= size:
                return None
            at += 12 + length
        return None
    if head[8:12] in (b"WAVE", b"AIFF", b"AIFC"):
        for kind, at, length in _chunk_walk(stream, head, size):
            if kind == b"data":
                return _Data(28 if head.startswith(b"RF64") else at + 4, at + 8, length)
            if kind == b"SSND":  # an offset and a block size of 4 bytes each stand before the samples
                return _Data(at + 4, at + 16, None if length is None else max(0, length - 8))
    return None


def _order(head: bytes) -> str:
    """How numbers of a RIFF or IFF file stand, as ``struct`` says it."""
    return ">" if head.startswith((b"RIFX", b"FORM")) else "<"


def _chunk_walk(stream: BinaryIO, head: bytes, size: int) -> Iterator[tuple[bytes, int, int | None]]:
    """(type, where it stands, bytes of content or None to the file's end) of the chunks of a RIFF or IFF file."""
    order, at = _order(head), 12
    for _ in range(_MOST_CHUNKS):
        chunk = _at(stream, at, 8)
        if len(chunk) < 8:
            return
        length: int | None = struct.unpack(order + "I", chunk[4:])[0]
        assert length is not None
        if head.startswith(b"RF64") and chunk[:4] == b"data" and head[12:16] == b"ds64":
            length = int(struct.unpack_from("<Q", head, 28)[0])
        elif length >= UNKNOWN_SIZE:
            length = None
        yield chunk[:4], at, length
        if length is None:
            return
        at += 8 + length
        # Content of odd length is followed by a byte of padding, which some writers forget.
        at += length & 1 and not _is_chunk(stream, at, size, order)
        if at < size and not _is_chunk(stream, at, size, order):
            at += _zeros(stream, at, size)
            if not _is_chunk(stream, at, size, order):
                return


def _last_chunk_end(stream: BinaryIO, head: bytes, size: int) -> int:
    """Where the chunks of a RIFF or IFF file end; chunks that stand behind the outer size count too."""
    end = 12
    for _, at, length in _chunk_walk(stream, head, size):
        end = size if length is None else min(size, at + 8 + length)
    return end


def _is_chunk(stream: BinaryIO, at: int, size: int, order: str) -> bool:
    """Whether a chunk stands at ``at``: a type in printable characters, and a length that stays within the file."""
    head = _at(stream, at, 8)
    if len(head) < 8 or not _printable(head[:4]) or head.startswith(_HEADS):
        return False
    # Whether that of the samples is wrong is for others to say.
    return head[:4] in (b"data", b"SSND") or at + 8 + int(struct.unpack(order + "I", head[4:])[0]) <= size + 1


def _printable(kind: bytes) -> bool:
    return all(32 <= byte < 127 for byte in kind)


def _behind(stream: BinaryIO, end: int, size: int) -> int | None:
    """Where behind ``end`` something stands that is no tag of another format and no zero; None where nothing does."""
    if end >= size:
        return None
    at = end
    stream.seek(at)
    if size - at <= _PIECE or stream.read(3) in (b"TAG", b"ID3", b"APE"):
        at += behind_tags(_at(stream, at, size - at), 0)
    at += _zeros(stream, at, size)
    return at if at < size else None


def _zeros(stream: BinaryIO, at: int, size: int) -> int:
    """How many bytes of 0 stand at ``at``."""
    begin = at
    while at < size:
        piece = _at(stream, at, _PIECE)
        if not piece:
            break
        left = piece.lstrip(b"\0")
        at += len(piece) - len(left)
        if left:
            break
    return at - begin


def _second_movie(stream: BinaryIO, size: int) -> str | None:
    """Why an MP4 is refused in which another one begins: the decoder goes by the first one's tables."""
    movies, begun = 0, False
    before = 0
    for kind, end in chunks(stream, 0, size, mp4_box):
        movies += kind == b"moov"
        if movies > 1 or (kind == b"ftyp" and begun):
            return _joined(before)
        begun, before = True, end
    rest = _behind(stream, before, size)
    if rest is not None and _at(stream, rest + 4, 4) == b"ftyp":
        return _joined(rest)
    return None


def _last_riff_end(stream: BinaryIO, size: int) -> int:
    """Where an AVI ends; one of more than 1 GiB has several outer chunks (OpenDML)."""
    end = 0
    for _ in range(_MOST_CHUNKS):
        head = _at(stream, end, 12)
        if not head.startswith(b"RIFF") or (end and head[8:] != b"AVIX"):
            break
        end += 8 + int(struct.unpack_from("<I", head, 4)[0])
    return end


def _joined(at: int) -> str:
    return f"at byte {at} another recording is joined to it, which the decoder would leave out: split what was joined"


def _at(stream: BinaryIO, at: int, count: int) -> bytes:
    """``count`` bytes from ``at`` on, fewer at the file's end; sizes in headers may point where no file reaches."""
    if at > sys.maxsize:
        return b""
    stream.seek(at)
    return stream.read(count)
