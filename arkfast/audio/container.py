"""Whether a recording's end is missing, told from its bytes where the decoder would keep silent.

libsndfile reports the length of what is left of a cut WAV or Ogg file as if it were whole, and guesses the length of an MP3 that has no
length tag. This module knows the few header fields that tell: outer sizes (WAV, RF64, W64, AIFF, AU), the end mark of Ogg, the
frame headers of MP3. It decodes nothing; a cut FLAC or tagged MP3 shows while decoding.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

_UNKNOWN_SIZE = 0x7FF00000  # what writers to a pipe leave in a 32-bit size field is at least this

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
        seconds: how long the decoder says it is.

    Returns:
        A clause for an error message. Less than 0.1 s missing (and trailing metadata of that size) passes.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(64)
    announced = _announced_size(head)
    if announced is not None and size and (announced - size) * seconds / size > 0.1:
        return f"its header announces {announced} bytes and it has {size}"
    if head.startswith(b"OggS") and not _ogg_ends(stream, size):
        return "its last Ogg page does not mark the end of the stream"
    return None


def _announced_size(head: bytes) -> int | None:
    """Bytes that the file should have by its own header, or None where the header does not say."""
    magic, kind = head[:4], head[8:12]
    if len(head) < 40:
        return None
    if magic == b"RIFF" and kind == b"WAVE":
        size = struct.unpack_from("<I", head, 4)[0]
        return size + 8 if size < _UNKNOWN_SIZE else None
    if magic == b"FORM" and kind in (b"AIFF", b"AIFC"):
        size = struct.unpack_from(">I", head, 4)[0]
        return size + 8 if size < _UNKNOWN_SIZE else None
    if magic == b"RF64" and head[12:16] == b"ds64":
        return struct.unpack_from("<Q", head, 20)[0] + 8
    if magic == b"riff":  # W64: a 16-byte id, then the size of everything
        return struct.unpack_from("<Q", head, 16)[0]
    if magic == b".snd":
        start, size = struct.unpack_from(">II", head, 4)
        return start + size if size < _UNKNOWN_SIZE else None
    return None


def _ogg_ends(stream: BinaryIO, size: int) -> bool:
    """Whether the last page is whole and carries the end-of-stream flag (RFC 3533 §6)."""
    longest_page = 27 + 255 + 255 * 255
    stream.seek(max(0, size - longest_page))
    tail = stream.read()
    page = tail.rfind(b"OggS")
    if page < 0 or len(tail) < page + 27:
        return False
    segments = tail[page + 26]
    body = tail[page + 27 : page + 27 + segments]
    return bool(tail[page + 5] & 4) and len(tail) >= page + 27 + segments + sum(body)


def untagged_mp3_seconds(stream: BinaryIO) -> float | None:
    """How long an MP3 without a length tag is, by walking its frame headers; None when it has a Xing, Info or VBRI tag.

    Without a tag the decoder extrapolates from the bit rate of the first frames, which is wrong for a variable one.
    """
    stream.seek(0)
    head = stream.read(10)
    # An ID3 tag's size is four 7-bit digits after the version and flags.
    tag = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)) if head[:3] == b"ID3" else 0
    stream.seek(tag)
    data = stream.read(1 << 16)
    at = _first_mp3_frame(data)
    if at is None or any(mark in data[at : at + 64] for mark in (b"Xing", b"Info", b"VBRI")):
        return None
    data += stream.read()
    seconds = 0.0
    while frame := _mp3_frame(data, at):
        at += frame[0]
        seconds += frame[1]
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
