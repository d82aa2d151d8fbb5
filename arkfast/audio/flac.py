"""Whether a flac file's header agrees with its last frame, and whether the packets that a demuxer cuts out of it are its frames.

libsndfile stops in silence where the header says that the recording ends. FFmpeg hangs what it cannot make out on the frame before it
and then ignores it, so that a damaged frame is missing from the samples in silence. Stream headers, frame headers and their checksums tell
(RFC 9639 §8.2 and §9.1); nothing is decoded here.
"""

from __future__ import annotations

import os
from typing import BinaryIO

from arkfast.audio.container import first_of
from arkfast.audio.sniff import id3_end

_LONG_FRAME = 1 << 16  # bytes searched for the last frame where the header does not say how long frames are
_MOST_BLOCKS = 1000  # of metadata; a file has a handful
_LEAST_HEADER = 5  # bytes up to the frame's number
_LONGEST_HEADER = 16  # bytes: sync and codes 4, number 7, block size 2, rate 2, CRC 1
_BEGINNING = b"fLaC\0\0\0\x22"  # the mark and the length of the block that comes first
_ID3V1 = 128  # bytes of the tag that some writers put behind the last frame


class FlacOrder:
    """Follows the packets of one file."""

    def __init__(self) -> None:
        self._due: int | None = None
        self._last = b""

    def follows(self, packet: bytes, samples: int) -> bool:
        """Whether a packet is the frame that is due.

        Args:
            packet: its bytes.
            samples: per channel, of the frame decoded from it.
        """
        if len(packet) < _LEAST_HEADER:
            return False
        number = _number(packet)
        due, variable = self._due, packet[1] & 1
        # Frames are counted, or where their sizes vary, samples.
        self._due, self._last = number + (samples if variable else 1), packet
        return due is None or number == due

    def ends(self) -> bool:
        """Whether the last packet is one whole frame: with its CRC-16 at the end the remainder is 0."""
        return _is_frame(self._last)


def flac_disagreement(stream: BinaryIO) -> str | None:
    """Why a file's header is not to be believed: its last frame ends elsewhere than the header says. None where it does not show.

    Args:
        stream: the whole file, seekable.
    """
    start, size = id3_end(stream), stream.seek(0, os.SEEK_END)
    stream.seek(start)
    head = stream.read(26)
    if len(head) < 26 or head[:4] != b"fLaC":
        return None
    longest_block, longest_frame = int.from_bytes(head[10:12], "big"), int.from_bytes(head[15:18], "big")
    rate, total = int.from_bytes(head[18:21], "big") >> 4, int.from_bytes(head[21:26], "big") & (1 << 36) - 1
    if not total or not rate:
        return None
    if (second := first_of(stream, start + 4, (_BEGINNING,))) is not None:
        return f"at byte {second} another recording is joined to it, which the decoder would leave out"
    stream.seek(max(start, size - (longest_frame or _LONG_FRAME) - _ID3V1))
    tail = stream.read()
    at = len(tail)
    while (at := max(tail.rfind(b"\xff\xf8", 0, at), tail.rfind(b"\xff\xf9", 0, at))) >= 0:
        span = _frame_span(tail[at : at + _LONGEST_HEADER], longest_block)
        if span is None:
            continue
        if span[1] == total:
            return None
        # The bytes of a header can stand within a frame; a checksum to the file's end that comes out right by chance does not. A piece
        # copied out of a longer file keeps the longer one's numbers.
        if _is_frame(tail[at:]):
            first = _frame_span(_first_header(stream, start), longest_block)
            end = span[1] - (first[0] if first else 0)
            if end == total:
                return None
            return f"its header announces {total / rate:g} s and its last frame ends at {end / rate:g} s, as in files cut or joined"
    return None


def _first_header(stream: BinaryIO, start: int) -> bytes:
    """What stands behind the metadata blocks, each of which says in 4 bytes whether it is the last and how long it is."""
    at = start + 4
    for _ in range(_MOST_BLOCKS):
        stream.seek(at)
        block = stream.read(4)
        at += 4 + int.from_bytes(block[1:], "big")
        if len(block) < 4 or block[0] >= 0x80:
            break
    stream.seek(at)
    return stream.read(_LONGEST_HEADER)


def _frame_span(head: bytes, longest_block: int) -> tuple[int, int] | None:
    """The first sample of a frame and the one behind it by its numbers; None where no frame's header stands."""
    size_code, rate_code = (head[2] >> 4, head[2] & 15) if len(head) > 5 else (0, 0)
    at = 5 + max(0, 7 - (head[4] ^ 0xFF).bit_length()) if size_code else 0
    wide = {6: 1, 7: 2}.get(size_code, 0)
    checked = at + wide + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if not size_code or len(head) <= checked or _crc8(head[:checked]) != head[checked]:
        return None
    if wide:
        block = int.from_bytes(head[at : at + wide], "big") + 1
    else:
        block = 192 if size_code == 1 else 576 << size_code - 2 if size_code < 6 else 256 << size_code - 8
    number = _number(head)
    begin = number if head[1] & 1 else number * longest_block
    return begin, begin + block


def _number(packet: bytes) -> int:
    """The frame's or its first sample's number, coded like UTF-8 with up to 36 bits behind the first four bytes."""
    first = packet[4]
    more = max(0, 7 - (first ^ 0xFF).bit_length())
    value = first & (0x7F >> more)
    for byte in packet[5 : 5 + more]:
        value = value << 6 | byte & 0x3F
    return value


def _is_frame(data: bytes) -> bool:
    """Whether bytes are one whole frame, behind which an ID3v1 tag may stand."""
    return _crc16(data) == 0 or (data[-_ID3V1:].startswith(b"TAG") and _crc16(data[:-_ID3V1]) == 0)


def _crc8(data: bytes) -> int:
    """CRC of polynomial 0x07, highest bit first, from 0 (RFC 9639 §9.1.8)."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1) ^ (0x107 if crc & 0x80 else 0)
    return crc


def _crc16(data: bytes) -> int:
    """CRC of polynomial 0x8005, highest bit first, from 0 (RFC 9639 §9.3)."""
    crc = 0
    for byte in data:
        crc = (crc << 8 & 0xFF00) ^ _TABLE[crc >> 8 ^ byte]
    return crc


def _table_entry(byte: int) -> int:
    crc = byte << 8
    for _ in range(8):
        crc = (crc << 1) ^ (0x18005 if crc & 0x8000 else 0)
    return crc


_TABLE = [_table_entry(byte) for byte in range(256)]
