"""Telephony recordings that have no header: their suffix alone says how they are coded and at which rate.

Asterisk and other exchanges write such files. Bytes that contradict the suffix are refused, as far as a coding shows that; what is read is
a guess all the same, and the row says so.
"""

from __future__ import annotations

import os
from typing import BinaryIO

from arkfast.audio.sniff import Format, Raw, describe, is_text
from arkfast.records import InputError

_GSM = Format("GSM 06.10", "libsndfile", "", Raw("GSM610", 8000, 33))
_ULAW = Format("µ-law", "libsndfile", "", Raw("ULAW", 8000, 1))
_ALAW = Format("A-law", "libsndfile", "", Raw("ALAW", 8000, 1))
_G722 = Format("G.722", "pyav", "g722", Raw("", 16000, 1))
_SLIN = {8: 8000, 12: 12000, 16: 16000, 24: 24000, 32: 32000, 44: 44100, 48: 48000, 96: 96000, 192: 192000}

BY_SUFFIX: dict[str, Format] = {
    ".gsm": _GSM,
    **dict.fromkeys((".ul", ".ulaw", ".mulaw", ".mu", ".pcmu"), _ULAW),
    **dict.fromkeys((".al", ".alaw", ".pcma"), _ALAW),
    ".g722": _G722,
    ".sln": Format("signed linear", "libsndfile", "", Raw("PCM_16", 8000, 2)),
    **{f".sln{name}": Format("signed linear", "libsndfile", "", Raw("PCM_16", rate, 2)) for name, rate in _SLIN.items()},
}
_GSM_MARK = 0xD0  # the upper half of the first byte of each frame (RFC 3551 §4.5.8.1)


def by_suffix(name: str) -> Format | None:
    """The headerless format that a file's name stands for, or None."""
    return BY_SUFFIX.get(os.path.splitext(name)[1].lower())


def check_headerless(stream: BinaryIO, form: Format, label: str) -> None:
    """Refuses what cannot be of a headerless format.

    Args:
        stream: the whole file, seekable.
        form: the format that the file's name stands for.
        label: what errors call the file.

    Raises:
        InputError: the bytes are text, or end within a frame, or are not the format's.
    """
    assert form.raw is not None
    stream.seek(0)
    data = stream.read(1 << 16)
    if is_text(data[:256]) or (form.raw.subtype != "PCM_16" and not any(data)):  # zeros are the loudest samples of µ-law
        raise InputError(f"{label}: not audio: {describe(stream)}")
    size = form.raw.frame_bytes
    if form is _GSM and any(byte & 0xF0 != _GSM_MARK for byte in data[::size]):
        raise InputError(f"{label}: not audio: its suffix stands for {form.name} and its frames do not begin as that has it")
    if (length := stream.seek(0, os.SEEK_END)) % size:
        raise InputError(f"{label}: truncated: {form.name} comes in frames of {size} bytes, and its {length} bytes end within one")


def taken_for(form: Format) -> str:
    """The warning about a file that was read by its suffix."""
    assert form.raw is not None
    return f"without a header, taken for {form.name} at {form.raw.rate} Hz by its suffix"
