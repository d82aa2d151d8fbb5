"""Whether the pages of an Ogg file are all there and whole.

libsndfile skips damaged pages and reads to wherever the last whole one stands, in silence and with the samples behind a hole moved forward.
The pages' framing and checksums are looked at (RFC 3533 §6), whatever codec is in them.
"""

from __future__ import annotations

import zlib
from typing import BinaryIO, NamedTuple

_MOST_PAGES = 1 << 21  # eleven hours of a live encoder's pages of 20 ms
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_FLAGS, _SUM = 5, 22  # where a page's flags and its checksum stand
_BEGIN, _END = 2, 4  # flags of a stream's first and last page


class OggState(NamedTuple):
    """What a walk over the pages found."""

    damage: str | None
    """Why some page in the middle cannot be decoded, or None."""
    ends: bool
    """Whether the last page is whole."""
    marked: bool
    """Whether it marks the end of its stream too."""
    mark: tuple[int, bytes] | None = None
    """Where it does not, the bytes that would mark it, with the checksum that belongs to them, and where they stand."""


def walk_pages(stream: BinaryIO) -> OggState:
    """Checks each page's checksum, and that each stream's pages follow one another.

    Args:
        stream: the whole file, seekable.
    """
    stream.seek(0)
    at, page, ended, begun = 0, b"", False, False
    last: dict[bytes, int] = {}  # stream → its last page's number
    for _ in range(_MOST_PAGES):
        head = stream.read(27)
        if not head:
            return OggState(None, True, ended, None if ended or not page else (at - len(page) + _FLAGS, _marked(page)))
        if head[:4] != b"OggS"[: len(head)]:
            # Behind the end stand tags of other formats and padding.
            return OggState(None, True, True) if ended else _damaged(f"no Ogg page stands at byte {at}, where one is due")
        lengths = stream.read(head[26]) if len(head) == 27 else b""
        body = stream.read(sum(lengths))
        if len(head) < 27 or len(lengths) < head[26] or len(body) < sum(lengths):
            return OggState(None, False, False)
        page = head + lengths + body
        if int.from_bytes(head[_SUM : _SUM + 4], "little") != _checksum(head[:_SUM] + bytes(4) + page[_SUM + 4 :]):
            return _damaged(f"the Ogg page at byte {at} fails its checksum")
        if begun and head[_FLAGS] & _BEGIN:  # the first pages of all streams of a recording stand before everything else
            return _damaged(f"at byte {at} another recording is chained on, which the decoder would leave out")
        serial, number = head[14:18], int.from_bytes(head[18:22], "little")
        if serial in last and number != last[serial] + 1:
            return _damaged(f"an Ogg page is missing before byte {at}")
        last[serial], ended = number, bool(head[_FLAGS] & _END)
        begun = begun or not head[_FLAGS] & _BEGIN
        at += len(page)
    return _damaged(f"it has more than {_MOST_PAGES} Ogg pages")


def _marked(page: bytes) -> bytes:
    """The bytes of a page from its flags to its checksum, as they are where it marks its stream's end."""
    head = page[:_FLAGS] + bytes([page[_FLAGS] | _END]) + page[_FLAGS + 1 : _SUM]
    return head[_FLAGS:] + _checksum(head + bytes(4) + page[_SUM + 4 :]).to_bytes(4, "little")


def _damaged(reason: str) -> OggState:
    return OggState(reason, False, False)


def _checksum(page: bytes) -> int:
    """CRC-32 of polynomial 0x04c11db7, highest bit first, from 0 and not inverted (RFC 3533 §6).

    zlib's is the same polynomial lowest bit first, from and to inverted values: mirrored bytes in, mirrored bits out, inversions undone.
    """
    mirrored = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_REVERSED), "big")
