"""Whether a recording's end is missing, told from its bytes where the decoder would keep silent.

libsndfile reports the length of what is left of a cut WAV file as if it were whole, and guesses the length of an MP3 that has no
length tag; FFmpeg ends quietly where the bytes end. This module knows the few header fields that tell: outer sizes (WAV, RF64, W64, AIFF,
AU, NIST SPHERE, Matroska), chains of sized chunks (CAF, MP4), the frame headers and length tags of MP3. It decodes nothing; a cut FLAC or
tagged MP3 shows while decoding, and FLAC's frames and Ogg's pages have modules of their own.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

from arkfast.audio.sniff import MP4_BOXES, id3_end

_UNKNOWN_SIZE = 0x7FF00000  # what writers to a pipe leave in a 32-bit size field is at least this
_MOST_CHUNKS = 1 << 16  # an hour of fragmented MP4 in pieces of 0.1 s; a file of more is not walked to its end

# Indexed by the two version bits (0 = MPEG 2.5, 2 = MPEG 2, 3 = MPEG 1), for layer III.
_MP3_KBPS = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


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
        announced = _chain_end(stream, 8, size, _caf_chunk)
    elif head[4:8] in MP4_BOXES:
        announced = _chain_end(stream, 0, size, _mp4_box)
    else:
        announced = _announced_size(head)
    if announced is not None and size and (announced - size) * seconds / size > 0.1:
        return f"truncated: its header announces {announced} bytes and it has {size}: get the whole file"
    return None


def _announced_size(head: bytes) -> int | None:
    """Bytes that the file should have by its own header, or None where the header does not say."""
    magic, kind = head[:4], head[8:12]
    if magic in (b"RIFF", b"RIFX") and kind == b"WAVE":
        size = int.from_bytes(head[4:8], "little" if magic == b"RIFF" else "big")
        return size + 8 if size < _UNKNOWN_SIZE else None
    if magic == b"FORM" and kind in (b"AIFF", b"AIFC"):
        size = struct.unpack_from(">I", head, 4)[0]
        return size + 8 if size < _UNKNOWN_SIZE else None
    if magic == b"RF64" and head[12:16] == b"ds64" and len(head) >= 28:
        return struct.unpack_from("<Q", head, 20)[0] + 8
    if magic == b"riff" and len(head) >= 24:  # W64: a 16-byte id, then the size of everything
        return struct.unpack_from("<Q", head, 16)[0]
    if magic == b".snd" and len(head) >= 12:
        start, size = struct.unpack_from(">II", head, 4)
        return start + size if size < _UNKNOWN_SIZE else None
    if head.startswith(b"NIST_1A"):
        return _nist_size(head)
    if magic == b"\x1a\x45\xdf\xa3":
        return _matroska_size(head)
    return None


def _nist_size(head: bytes) -> int | None:
    """The header's own size stands in its second line, then fields such as ``sample_count -i 16000`` (NIST SPHERE 2.7)."""
    lines = head.split(b"\n")
    fields = {parts[0]: parts[2] for parts in (line.split(None, 2) for line in lines) if len(parts) == 3}
    try:
        count, width = int(fields[b"sample_count"]), int(fields.get(b"sample_n_bytes", b"2"))
        coding = fields.get(b"sample_coding", b"pcm")
        return None if b"shorten" in coding else int(lines[1]) + count * width * int(fields.get(b"channel_count", b"1"))
    except (KeyError, ValueError):
        return None


def _matroska_size(head: bytes) -> int | None:
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


def fragmented_mp4(stream: BinaryIO) -> bool:
    """Whether an MP4's samples come in fragments, of which its header knows neither the number nor the length."""
    size = stream.seek(0, os.SEEK_END)
    return any(kind == b"moof" for kind, _ in _chunks(stream, 0, size, _mp4_box))


def _chain_end(stream: BinaryIO, at: int, size: int, parse: Callable[[bytes], tuple[bytes, int] | None]) -> int | None:
    """Where the last of a file's sized chunks ends, or None when one runs to the file's end whatever that is."""
    end = max((end for _, end in _chunks(stream, at, size, parse)), default=at)
    return end if end >= size else None


def _chunks(stream: BinaryIO, at: int, size: int, parse: Callable[[bytes], tuple[bytes, int] | None]) -> Iterator[tuple[bytes, int]]:
    """(type, end) of the chunks from ``at`` on that say how large they are."""
    for _ in range(_MOST_CHUNKS):
        stream.seek(at)
        chunk = parse(stream.read(16)) if at < size else None
        if chunk is None:
            return
        at += chunk[1]
        yield chunk[0], at


def _caf_chunk(head: bytes) -> tuple[bytes, int] | None:
    """Type and bytes of a Core Audio chunk: the size has 64 bits, −1 where the writer did not know it (Apple, CAF specification)."""
    if len(head) < 12:
        return None
    size = struct.unpack_from(">q", head, 4)[0]
    return None if size < 0 else (head[:4], 12 + size)


def _mp4_box(head: bytes) -> tuple[bytes, int] | None:
    """Type and bytes of a box: 32 bits of size, or 64 behind the type if they say 1; 0 means to the end (ISO/IEC 14496-12 §4.2)."""
    if len(head) < 8:
        return None
    size = struct.unpack_from(">I", head)[0]
    if size == 1 and len(head) == 16:
        size = struct.unpack_from(">Q", head, 8)[0]
    return (head[4:8], size) if size >= 8 else None


def untagged_mp3_seconds(stream: BinaryIO) -> float | None:
    """How long an MP3 without a length tag is, by walking its frame headers; None when it has a Xing, Info or VBRI tag.

    Without a tag the decoder extrapolates from the bit rate of the first frames, which is wrong for a variable one.
    """
    at = id3_end(stream)
    stream.seek(at)
    data = stream.read(1 << 16)
    first = _first_mp3_frame(data)
    if first is None or _mp3_tag(data, first) is not None:
        return None
    return _mp3_walk(stream, at + first, math.inf)


def seconds_behind_tag(stream: BinaryIO) -> float:
    """How long all frames of a tagged MP3 are, walked where some follow its end by the tag, as in files joined into one; else 0."""
    at = id3_end(stream)
    stream.seek(at)
    data = stream.read(1 << 16)
    first = _first_mp3_frame(data)
    size = None if first is None else _mp3_tag(data, first)
    if first is None or not size:
        return 0.0
    begin, at = at + first, at + first + size
    stream.seek(at)
    if stream.read(3) == b"TAG":  # ID3v1, of 128 bytes, legal at a file's end
        at += 128
    at = id3_end(stream, at)
    stream.seek(at)
    more = _first_mp3_frame(stream.read(1 << 16))
    return 0.0 if more is None else _mp3_walk(stream, begin, begin + size) + _mp3_walk(stream, at + more, math.inf)


def _mp3_tag(data: bytes, first: int) -> int | None:
    """Bytes from the first frame on by the length tag in it, 0 where the tag does not say, None where there is no tag."""
    frame = data[first : first + 128]
    for mark in (b"Xing", b"Info"):
        if (at := frame.find(mark, 0, 64)) >= 0:
            flags = int.from_bytes(frame[at + 4 : at + 8], "big")  # 1: a count of frames stands next; 2: one of bytes behind it
            start = at + 8 + 4 * (flags & 1)
            return int.from_bytes(frame[start : start + 4], "big") if flags & 2 else 0
    if (at := frame.find(b"VBRI", 0, 64)) >= 0:
        return int.from_bytes(frame[at + 10 : at + 14], "big")
    return None


def _mp3_walk(stream: BinaryIO, at: int, end: float) -> float:
    """Seconds of the frames that follow one another from byte ``at`` on and begin before ``end``."""
    seconds = 0.0
    stream.seek(at)
    while at < end and (frame := _mp3_frame(stream.read(4), 0)):
        at += frame[0]
        seconds += frame[1]
        stream.seek(at)
    return seconds


def _first_mp3_frame(data: bytes) -> int | None:
    """Where the first frame header stands that another one follows."""
    at = data.find(b"\xff")
    while at >= 0:
        frame = _mp3_frame(data, at)
        if frame and _mp3_frame(data, at + frame[0]):
            return at
        at = data.find(b"\xff", at + 1)
    return None


def _mp3_frame(data: bytes, at: int) -> tuple[int, float] | tuple[()]:
    """(bytes, seconds) of the layer III frame at ``at``, or nothing when no whole frame header stands there (ISO/IEC 11172-3 §2.4.1.3)."""
    if at + 4 > len(data):
        return ()
    sync, layout, rates = data[at], data[at + 1], data[at + 2]
    version, layer, bitrate, rate = (layout >> 3) & 3, (layout >> 1) & 3, rates >> 4, (rates >> 2) & 3
    if sync != 0xFF or layout < 0xE0 or version == 1 or layer != 1 or bitrate in (0, 15) or rate == 3:
        return ()
    hz, samples = _MP3_HZ[version][rate], 1152 if version == 3 else 576
    kbps = _MP3_KBPS[3 if version == 3 else 2][bitrate]
    padding = (rates >> 1) & 1
    return samples // 8 * kbps * 1000 // hz + padding, samples / hz
