"""Whether a recording's end is missing, told from its bytes where the decoder would keep silent.

libsndfile reports the length of what is left of a cut WAV file as if it were whole, and FFmpeg ends quietly where the bytes end. A few
header fields tell: outer sizes (WAV, RF64, W64, AIFF, AU, NIST SPHERE, Matroska) and chains of sized chunks (CAF, MP4). The converse, more
bytes than a header promises, is the module ``surplus``. MP3, FLAC and Ogg have modules of their own.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

from arkfast.audio.sniff import MP4_BOXES

UNKNOWN_SIZE = 0x7FF00000  # what writers to a pipe leave in a 32-bit size field is at least this
_PIECE = 1 << 20  # bytes read at a time
_MOST_CHUNKS = 1 << 16  # an hour of fragmented MP4 in pieces of 0.1 s; a file of more is not walked to its end


def missing_end(stream: BinaryIO, seconds: float) -> str | None:
    """Why the decoder's length is less than the recording's, or None when the bytes show nothing of the kind.

    Args:
        stream: the whole file, seekable.
        seconds: how long the decoder says it is; infinity when it cannot be opened, and any missing byte counts.

    Returns:
        A clause for an error message. Less than 0.1 s missing (and trailing metadata of that size) passes.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(1024)
    if head.startswith(b"caff"):
        announced = _chain_end(stream, 8, size, caf_chunk)
    elif head[4:8] in MP4_BOXES:
        announced = _chain_end(stream, 0, size, mp4_box)
    else:
        announced = announced_size(head)
    if announced is not None and size and (announced - size) * seconds / size > 0.1:
        return f"truncated: its header announces {announced} bytes and it has {size}: get the whole file"
    return None


def announced_size(head: bytes) -> int | None:
    """Bytes that the file should have by its own header, or None where the header does not say."""
    magic, kind = head[:4], head[8:12]
    if magic in (b"RIFF", b"RIFX") and kind in (b"WAVE", b"AVI "):
        size = int.from_bytes(head[4:8], "little" if magic == b"RIFF" else "big")
        return size + 8 if size < UNKNOWN_SIZE else None
    if magic == b"FORM" and kind in (b"AIFF", b"AIFC"):
        size = struct.unpack_from(">I", head, 4)[0]
        return size + 8 if size < UNKNOWN_SIZE else None
    if magic == b"RF64" and head[12:16] == b"ds64" and len(head) >= 28:
        return struct.unpack_from("<Q", head, 20)[0] + 8
    if magic == b"riff" and len(head) >= 24:  # W64: a 16-byte id, then the size of everything
        return struct.unpack_from("<Q", head, 16)[0]
    if magic == b".snd" and len(head) >= 12:
        start, size = struct.unpack_from(">II", head, 4)
        return start + size if size < UNKNOWN_SIZE else None
    if head.startswith(b"NIST_1A"):
        return nist_size(head)
    if magic == b"\x1a\x45\xdf\xa3":
        return matroska_size(head)
    return None


def nist_size(head: bytes) -> int | None:
    """The header's own size stands in its second line, then fields such as ``sample_count -i 16000`` (NIST SPHERE 2.7)."""
    lines = head.split(b"\n")
    fields = {parts[0]: parts[2] for parts in (line.split(None, 2) for line in lines) if len(parts) == 3}
    try:
        count, width = int(fields[b"sample_count"]), int(fields.get(b"sample_n_bytes", b"2"))
        coding = fields.get(b"sample_coding", b"pcm")
        size = int(lines[1]) + count * width * int(fields.get(b"channel_count", b"1"))
    except (KeyError, ValueError):
        return None
    return size if b"shorten" not in coding and 0 < size < 1 << 63 else None


def matroska_size(head: bytes) -> int | None:
    """Two elements, the EBML header and one segment: identifier, size, content (RFC 8794 §4). Live recordings leave the size open."""
    header = _ebml_number(head, 4)
    if header is None or header[0] is None:
        return None
    at = header[1] + header[0]
    if head[at : at + 4] != b"\x18\x53\x80\x67":
        return None
    segment = _ebml_number(head, at + 4)
    return None if segment is None or segment[0] is None else segment[1] + segment[0]


def _ebml_number(data: bytes, at: int) -> tuple[int | None, int] | None:
    """(value, offset behind it); the zeros before the first set bit count the further bytes, all other bits set mean "unknown" (None)."""
    if at >= len(data) or not data[at]:
        return None
    length = 9 - data[at].bit_length()
    if at + length > len(data):
        return None
    ones = (1 << 7 * length) - 1
    value = int.from_bytes(data[at : at + length], "big") & ones
    return (None if value == ones else value), at + length


def first_of(stream: BinaryIO, at: int, marks: tuple[bytes, ...]) -> int | None:
    """Where behind ``at`` one of some marks of one length stands first, None where none does."""
    held, length = b"", len(marks[0])
    stream.seek(at)
    while piece := stream.read(_PIECE):
        held = held[len(held) - length + 1 :] + piece if len(held) >= length else held + piece
        at += len(piece)
        if found := [place for mark in marks if (place := held.find(mark)) >= 0]:
            return at - len(held) + min(found)
    return None


def fragmented_mp4(stream: BinaryIO) -> bool:
    """Whether an MP4's samples come in fragments, of which its header knows neither the number nor the length."""
    size = stream.seek(0, os.SEEK_END)
    return any(kind == b"moof" for kind, _ in chunks(stream, 0, size, mp4_box))


def _chain_end(stream: BinaryIO, at: int, size: int, parse: Callable[[bytes], tuple[bytes, int] | None]) -> int | None:
    """Where the last of a file's sized chunks ends, or None when one runs to the file's end whatever that is."""
    end = max((end for _, end in chunks(stream, at, size, parse)), default=at)
    return end if end >= size else None


def chunks(stream: BinaryIO, at: int, size: int, parse: Callable[[bytes], tuple[bytes, int] | None]) -> Iterator[tuple[bytes, int]]:
    """(type, end) of the chunks from ``at`` on that say how large they are.

    A size may have 64 bits, so that an end may lie where no file reaches.
    """
    for _ in range(_MOST_CHUNKS):
        if at >= size:
            return
        stream.seek(at)
        chunk = parse(stream.read(16))
        if chunk is None:
            return
        at += chunk[1]
        yield chunk[0], at


_CAF_CHUNKS = frozenset(b"desc data strg mark pakt kuki chan inst midi regn info umid uuid ovvw peak edct free".split())


def caf_chunk(head: bytes) -> tuple[bytes, int] | None:
    """Type and bytes of a Core Audio chunk: the size has 64 bits, −1 where the writer did not know it (Apple, CAF specification)."""
    if len(head) < 12:
        return None
    size = struct.unpack_from(">q", head, 4)[0]
    return None if size < 0 or head[:4] not in _CAF_CHUNKS else (head[:4], 12 + size)


def mp4_box(head: bytes) -> tuple[bytes, int] | None:
    """Type and bytes of a box: 32 bits of size, or 64 behind the type if they say 1; 0 means to the end (ISO/IEC 14496-12 §4.2)."""
    if len(head) < 8:
        return None
    size = struct.unpack_from(">I", head)[0]
    if size == 1 and len(head) == 16:
        size = struct.unpack_from(">Q", head, 8)[0]
    # Behind the last box a tag of another format may stand, whose type is not made of characters.
    return (head[4:8], size) if size >= 8 and all(32 <= byte < 127 or byte == 0xA9 for byte in head[4:8]) else None
