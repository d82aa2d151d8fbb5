"""What a file is by its first bytes, and which library decodes it.

No extension is trusted here; files that have no header, and are known by their suffix alone, are in ``headerless``.
"""

from __future__ import annotations

from typing import BinaryIO, Literal, NamedTuple


class Raw(NamedTuple):
    """How the samples of a file without a header are coded."""

    subtype: str
    """libsndfile's name of the coding."""
    rate: int
    """Hz."""
    frame_bytes: int
    """What a file's length is a multiple of."""


class Format(NamedTuple):
    """A file format that can be read."""

    name: str
    """How messages call it."""
    library: Literal["libsndfile", "pyav"]
    """Who decodes it."""
    demuxer: str
    """FFmpeg's name of the container, so that nothing else is tried on the bytes. Where libsndfile decodes, what it refuses is given to
    this one; empty: there is nothing to gain from that."""
    raw: Raw | None = None
    """The coding where the file has no header."""


WAV = Format("wav", "libsndfile", "wav")
RF64 = Format("rf64", "libsndfile", "wav")
W64 = Format("w64", "libsndfile", "w64")
AIFF = Format("aiff", "libsndfile", "aiff")
AU = Format("au", "libsndfile", "au")
CAF = Format("caf", "libsndfile", "caf")
NIST = Format("NIST SPHERE", "libsndfile", "nistsphere")
FLAC = Format("flac", "libsndfile", "")
PIPED_FLAC = Format("flac without a length", "pyav", "flac")  # libsndfile fails at its end
OGG = Format("ogg", "libsndfile", "ogg")
MP3 = Format("mp3", "libsndfile", "")
MP4 = Format("m4a/mp4", "pyav", "mp4")
MATROSKA = Format("webm/mkv", "pyav", "matroska")
ASF = Format("wma", "pyav", "asf")
ADTS = Format("aac", "pyav", "aac")
AMR = Format("amr", "pyav", "amr")
FLV = Format("flv", "pyav", "flv")
TS = Format("ts", "pyav", "mpegts")
AVI = Format("avi", "pyav", "avi")
WAVPACK = Format("wv", "pyav", "wv")

_START: tuple[tuple[bytes, Format], ...] = (
    (b"RF64", RF64),
    (b"riff\x2e\x91\xcf\x11", W64),
    (b".snd", AU),
    (b"caff", CAF),
    (b"NIST_1A", NIST),
    (b"OggS", OGG),
    (b"\x1a\x45\xdf\xa3", MATROSKA),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", ASF),
    (b"#!AMR", AMR),
    (b"FLV\x01", FLV),
    (b"wvpk", WAVPACK),
)
# An outer tag, then a length, then what it is.
_FORMS: dict[tuple[bytes, bytes], Format] = {
    (b"RIFF", b"WAVE"): WAV,
    (b"RIFX", b"WAVE"): WAV,
    (b"FORM", b"AIFF"): AIFF,
    (b"FORM", b"AIFC"): AIFF,
    (b"RIFF", b"AVI "): AVI,
}
# What stands first: ftyp today, the others in old QuickTime files and in pieces of streams.
MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"styp")


def sniff(stream: BinaryIO) -> Format | None:
    """The format of a file, or None when its bytes are of none that can be read.

    Args:
        stream: the whole file, seekable.
    """
    behind_tags = id3_end(stream)
    stream.seek(behind_tags)
    head = stream.read(26)
    if head.startswith(b"fLaC"):  # the last 36 bits of these count the samples, 0 when the writer did not know (RFC 9639 §8.2)
        return PIPED_FLAC if len(head) == 26 and not int.from_bytes(head[18:], "big") % (1 << 36) else FLAC
    for magic, known in _START:
        if head.startswith(magic):
            return known
    if form := _FORMS.get((head[:4], head[8:12])):
        return form
    if head[4:8] in MP4_BOXES:
        return MP4
    if not behind_tags and _transport_stream(stream):
        return TS
    if len(head) >= 4 and head[0] == 0xFF and head[1] >= 0xE0:
        # Of MPEG's sync word the layer bits tell: 00 is AAC's ADTS (ISO/IEC 13818-7 §6.2), whose sync has 12 bits; others are MPEG audio.
        layer, reserved_version = (head[1] >> 1) & 3, (head[1] >> 3) & 3 == 1
        if layer:
            return None if reserved_version else MP3
        return ADTS if head[1] >= 0xF0 else None
    return MP3 if behind_tags else None


def _transport_stream(stream: BinaryIO) -> bool:
    """Whether packets of 188 bytes begin with their mark (ISO/IEC 13818-1 §2.4.3), bare or each behind a time of 4 bytes."""
    stream.seek(0)
    head = stream.read(600)
    return any(len(head) > 2 * size and head[at : at + 2 * size + 1 : size] == b"GGG" for at, size in ((0, 188), (4, 192)))


def is_text(head: bytes) -> bool:
    """Whether a file's first bytes are text in UTF-8."""
    text = head.decode("utf-8-sig", errors="replace").removesuffix("�")  # they may end within a character
    return bool(text) and all(character.isprintable() or character in "\t\r\n" for character in text) and "�" not in text


def describe(stream: BinaryIO) -> str:
    """What the first bytes of a file that is no audio look like, as a clause for an error message."""
    stream.seek(0)
    head = stream.read(256)
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer: fetch the recording with git lfs pull"
    shown = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if shown[:5].lower() in (b"<!doc", b"<html"):
        return "it is a web page: the download did not fetch the recording"
    if is_text(head):
        return f"it is text that begins with {head.decode('utf-8-sig', errors='ignore')[:40]!r}"
    if not any(head):
        return "it begins with zeros"
    return f"its first bytes are {head[:12].hex(' ')}"


def id3_end(stream: BinaryIO, at: int = 0) -> int:
    """The first byte behind the ID3 tags that stand at byte ``at``, ``at`` where there are none (id3.org, ID3v2.4.0 §3.1)."""
    while True:
        stream.seek(at)
        head = stream.read(10)
        if head[:3] != b"ID3" or len(head) < 10:
            return at
        # The size is four 7-bit digits and leaves out this header, and the footer that a flag announces.
        size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        at += 10 + size + (10 if head[5] & 0x10 else 0)
