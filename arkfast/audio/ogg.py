"""Whether the pages of an Ogg file are all there and whole.

Knows Ogg's framing (RFC 3533 §6) and checksum; knows no codec. libsndfile skips damaged pages and reads to wherever the last whole one
stands, in silence and with the samples behind a hole moved forward.
"""

from __future__ import annotations

import zlib
from typing import BinaryIO, NamedTuple

_MOST_PAGES = 1 << 21  # eleven hours of a live encoder's pages of 20 ms
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_BEGIN, _END = 2, 4  # header flags of a stream's first and last page


class OggState(NamedTuple):
    """What a walk over the pages found."""

    damage: str | None
    """Why some page in the middle cannot be decoded, or None."""
    ends: bool
    """Whether the last page is whole and marks the end of its stream."""


def walk_pages(stream: BinaryIO) -> OggState:
    """Checks each page's checksum, and that each stream's pages follow one another.

    Args:
        stream: the whole file, seekable.
    """
    stream.seek(0)
    at, ended = 0, False
    last: dict[bytes, int] = {}  # stream → its last page's number
    for _ in range(_MOST_PAGES):
        head = stream.read(27)
        if not head:
            return OggState(None, ended)
        if head[:4] != b"OggS"[: len(head)]:
            # Behind the end stand tags of other formats and padding.
            return OggState(None, True) if ended else OggState(f"no Ogg page stands at byte {at}, where one is due", False)
        lengths = stream.read(head[26]) if len(head) == 27 else b""
        body = stream.read(sum(lengths))
        if len(head) < 27 or len(lengths) < head[26] or len(body) < sum(lengths):
            return OggState(None, False)
        if int.from_bytes(head[22:26], "little") != _checksum(head[:22] + bytes(4) + head[26:] + lengths + body):
            return OggState(f"the Ogg page at byte {at} fails its checksum", False)
        if ended and head[5] & _BEGIN:
            return OggState(f"at byte {at} another recording is chained on, which the decoder would leave out", False)
        serial, number = head[14:18], int.from_bytes(head[18:22], "little")
        if serial in last and number != last[serial] + 1:
            return OggState(f"an Ogg page is missing before byte {at}", False)
        last[serial], ended = number, bool(head[5] & _END)
        at += 27 + len(lengths) + len(body)
    return OggState(f"it has more than {_MOST_PAGES} Ogg pages", False)


def _checksum(page: bytes) -> int:
    """CRC-32 of polynomial 0x04c11db7, highest bit first, from 0 and not inverted (RFC 3533 §6).

    zlib's is the same polynomial lowest bit first, from and to inverted values: mirrored bytes in, mirrored bits out, inversions undone.
    """
    mirrored = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_REVERSED), "big")
