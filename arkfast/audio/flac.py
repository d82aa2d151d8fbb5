"""Whether the packets that a demuxer cuts out of a flac file are its frames, whole and in order.

Knows flac's frame headers (RFC 9639 §9.1) and its CRC-16; decodes nothing. FFmpeg hangs what it cannot make out on the frame before it and
then ignores it, so that a damaged frame is missing from the samples in silence.
"""

from __future__ import annotations

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
        number = _number(packet)
        due, variable = self._due, packet[1] & 1
        # Frames are counted, or where their sizes vary, samples.
        self._due, self._last = number + (samples if variable else 1), packet
        return due is None or number == due

    def ends(self) -> bool:
        """Whether the last packet is one whole frame: with its CRC-16 at the end the remainder is 0."""
        last = self._last
        return _crc16(last) == 0 or (last[-_ID3V1:].startswith(b"TAG") and _crc16(last[:-_ID3V1]) == 0)


def _number(packet: bytes) -> int:
    """The frame's or its first sample's number, coded like UTF-8 with up to 36 bits behind the first four bytes."""
    first = packet[4]
    more = max(0, 7 - (first ^ 0xFF).bit_length())
    value = first & (0x7F >> more)
    for byte in packet[5 : 5 + more]:
        value = value << 6 | byte & 0x3F
    return value


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
