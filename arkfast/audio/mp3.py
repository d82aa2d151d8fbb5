"""The frames of an MPEG audio file, found one by one, and what its length tag says of them.

Without a length tag the decoder takes the length from the bit rate of the first frames, which is wrong for a variable one. With a tag it
stops where the tag says. Tags of other formats stand between the frames where files were joined. So every frame header is looked at here,
and nothing is decoded.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Indexed by the version bits' upper one (1 = MPEG 1, 0 = MPEG 2 and 2.5) and the layer bits (3 = layer I, 2 = II, 1 = III).
_KBPS = {
    (1, 3): (0, *range(32, 449, 32)),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 1): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 3): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (0, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (0, 1): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by the version bits
_SYNC = re.compile(rb"\xff[\xe2-\xff]")
_MOST_TAG_BYTES = 1 << 28  # a tag that claims more than 256 MiB is none


class Frame(NamedTuple):
    """What one frame header says."""

    size: int
    """Bytes of the frame with its header."""
    samples: int
    """Samples per channel."""
    hz: int
    """Sampling rate."""
    layer: int
    """Layer bits: 1 is layer III."""
    mono: bool
    """Whether it has one channel."""


class Walk(NamedTuple):
    """What a walk over a file's frames found."""

    frames: int
    """Whole frames that hold audio; the one with the length tag is left out."""
    samples: int
    """Samples per channel in them."""
    seconds: float
    """Their length."""
    tagged: bool
    """Whether a length tag (Xing, Info or VBRI) stands in the first frame."""
    announced: int | None
    """Frames of audio by that tag, None where it does not say."""
    layer: int
    """Layer bits of the first frame."""
    samples_a_frame: int
    """Samples per channel in each frame."""
    hz: int
    """Sampling rate."""
    stray: int
    """Bytes between frames that are no tag of a known kind."""
    changes_at: float | None
    """Seconds into the recording where rate, layer or the number of channels changes; None where they stay."""
    spans: tuple[tuple[int, int], ...]
    """[start, end) of the bytes of frames that follow one another."""


def walk(data: bytes) -> Walk | None:
    """All frames of a file; None where there are no two frames, one right behind the other.

    Args:
        data: the whole file.
    """
    begin = _resync(data, behind_tags(data, 0), None)
    if begin is None:
        return None
    first = _frame(data, begin)
    assert first is not None
    tagged, announced = _length_tag(data[begin : begin + min(first.size, 256)])
    at = begin + first.size if tagged else begin
    frames = samples = stray = 0
    changes_at: float | None = None
    spans: list[tuple[int, int]] = []
    start = at
    while True:
        frame = _frame(data, at)
        # Four bytes of something else can look like a header; one of another kind than the first counts where its like follows.
        if frame is not None and at + frame.size <= len(data) and (_alike(frame, first) or _alike(frame, _frame(data, at + frame.size))):
            if changes_at is None and (frame.hz, frame.layer, frame.mono) != (first.hz, first.layer, first.mono):
                changes_at = samples / first.hz
            frames, samples, at = frames + 1, samples + frame.samples, at + frame.size
            continue
        if start < at:
            spans.append((start, at))
        behind = behind_tags(data, at)
        found = _resync(data, behind, first)
        if found is None:
            return Walk(
                frames,
                samples,
                samples / first.hz,
                tagged,
                announced,
                first.layer,
                first.samples,
                first.hz,
                stray,
                changes_at,
                tuple(spans),
            )
        stray += found - behind
        start = at = found


def with_length_tag(data: bytes, found: Walk) -> bytes:
    """An MP3 of the same frames alone, behind a length tag that counts them.

    Args:
        data: the whole file.
        found: the walk over it, of layer III.
    """
    header = bytearray(data[found.spans[0][0] : found.spans[0][0] + 4])
    header[1] |= 1  # no checksum
    header[2] = 0xE0 | header[2] & 0x0C  # the highest bit rate, so that the tag fits; no padding
    frame = _frame(bytes(header), 0)
    assert frame is not None
    side = (
        (17 if frame.mono else 32) if header[1] & 8 else (9 if frame.mono else 17)
    )  # bytes of side information (ISO/IEC 11172-3 §2.4.1.7)
    size = sum(end - start for start, end in found.spans)
    tag = b"Xing" + (3).to_bytes(4, "big") + found.frames.to_bytes(4, "big") + (size + frame.size).to_bytes(4, "big")
    head = (bytes(header) + bytes(side) + tag).ljust(frame.size, b"\0")
    return head + b"".join(data[start:end] for start, end in found.spans)


def _frame(data: bytes, at: int) -> Frame | None:
    """The frame whose header stands at ``at`` (ISO/IEC 11172-3 §2.4.1.3); free formats have no length."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] < 0xE0:
        return None
    layout, rates = data[at + 1], data[at + 2]
    version, layer, bitrate, rate = (layout >> 3) & 3, (layout >> 1) & 3, rates >> 4, (rates >> 2) & 3
    if version == 1 or layer == 0 or bitrate in (0, 15) or rate == 3:
        return None
    hz, bits, padding = _HZ[version][rate], _KBPS[version & 1, layer][bitrate] * 1000, (rates >> 1) & 1
    mono = data[at + 3] >> 6 == 3
    if layer == 3:
        return Frame((12 * bits // hz + padding) * 4, 384, hz, layer, mono)
    samples = 576 if layer == 1 and version != 3 else 1152
    return Frame(samples // 8 * bits // hz + padding, samples, hz, layer, mono)


def _resync(data: bytes, at: int, like: Frame | None) -> int | None:
    """From ``at`` on, where a frame stands that another of its kind follows, or that ends where the file does; None where there is none.

    Args:
        like: a frame of the file; the last one of a file, which none follows, must be of its kind.
    """
    for match in _SYNC.finditer(data, at):
        here = match.start()
        frame = _frame(data, here)
        if frame is None:
            continue
        following = _frame(data, here + frame.size)
        # Amid other bytes two headers may stand where frames would by chance; of another kind than the file's, three are asked for.
        if _alike(frame, following) and (like is None or _alike(frame, like) or _three(data, here)):
            return here
        behind = here + frame.size
        # Behind a last frame stand tags or nothing.
        if _alike(frame, like) and behind <= len(data) == behind_tags(data, behind):
            return here
    return None


def _alike(frame: Frame, other: Frame | None) -> bool:
    """Whether two frames are of one rate, layer and length."""
    return other is not None and (frame.hz, frame.layer, frame.samples) == (other.hz, other.layer, other.samples)


def _three(data: bytes, at: int) -> bool:
    """Whether three frames of one kind follow one another from ``at`` on."""
    first = _frame(data, at)
    second = None if first is None else _frame(data, at + first.size)
    if first is None or second is None or not _alike(first, second):
        return False
    return _alike(first, _frame(data, at + first.size + second.size))


def behind_tags(data: bytes, at: int) -> int:
    """The first byte behind the tags of ID3v1, ID3v2, APE and ICY that stand at ``at``, ``at`` where there are none."""
    while at < len(data):
        head = data[at : at + 32]
        size = 0
        if head.startswith(b"TAG"):  # ID3v1, or its extension before it
            size = 227 if head[3:4] == b"+" else 128
        elif head.startswith(b"ID3") and len(head) >= 10:
            size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
            size += 20 if head[5] & 0x10 else 10
        elif head.startswith(b"APETAGEX") and len(head) == 32:
            # The size counts the footer and leaves out the header; a header says in bit 29 that it is one, and has the footer behind it.
            length, flags = int.from_bytes(head[12:16], "little"), int.from_bytes(head[20:24], "little")
            size = 32 + length if flags & 1 << 29 else 32
        elif head[1:13] == b"StreamTitle=":  # ICY: the first byte counts pieces of 16
            size = 1 + 16 * head[0]
        if not 0 < size < _MOST_TAG_BYTES:
            return at
        at += size
    return len(data)


def _length_tag(frame: bytes) -> tuple[bool, int | None]:
    """Whether a length tag stands in a file's first frame, and the frames of audio that it counts (None: it does not)."""
    for mark in (b"Xing", b"Info"):
        if (at := frame.find(mark, 0, 64)) >= 0:
            flags = int.from_bytes(frame[at + 4 : at + 8], "big")  # 1: a count of frames stands next
            counted = int.from_bytes(frame[at + 8 : at + 12], "big") if flags & 1 and len(frame) >= at + 12 else 0
            return True, counted or None
    if (at := frame.find(b"VBRI", 0, 64)) >= 0:
        return True, int.from_bytes(frame[at + 14 : at + 18], "big") or None
    return False, None
