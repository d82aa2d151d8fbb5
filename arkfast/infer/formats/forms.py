"""One recording in each format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from arkfast.files import json_text
from arkfast.infer.formats.captions import Caption, captions
from arkfast.infer.formats.recordings import Recording

Form = Literal["jsonl", "json", "verbose_json", "txt", "srt", "vtt", "tsv"]
"""``jsonl`` is the file of all rows; the others have a file for each recording."""


@dataclass(frozen=True, kw_only=True)
class CaptionLimits:
    """How much text a caption holds."""

    max_line_width: int = 42
    """Most columns of a line, of which a Han character or a kana takes two; 0 sets no limit."""
    max_line_count: int = 2
    """Most lines of a caption; 0 sets no limit."""


def written(recording: Recording, form: Form, limits: CaptionLimits) -> str:
    """A recording's transcript in a format, ending in a line feed where it is not empty.

    Args:
        recording: has no failed row.
        form: one of ``FORMS``.
        limits: of captions; other formats ignore them.
    """
    return FORMS[form].write(recording, limits)


def _json(recording: Recording, _: CaptionLimits) -> str:
    return json_text({"text": recording.text}) + "\n"


def _verbose_json(recording: Recording, _: CaptionLimits) -> str:
    segments = [
        {"id": number, "start": segment.start, "end": segment.end, "text": segment.text} | detail
        for number, (segment, detail) in enumerate(recording.parts)
    ]
    whole: dict[str, object] = {"task": "transcribe", "language": recording.language, "duration": recording.duration}
    whole |= {"text": recording.text, "segments": segments}
    if recording.words is not None:
        whole["words"] = recording.words
    if recording.warnings:
        whole["warnings"] = recording.warnings
    return json_text(whole, indent=2) + "\n"


def _txt(recording: Recording, _: CaptionLimits) -> str:
    return f"{recording.text}\n"


def _srt(recording: Recording, limits: CaptionLimits) -> str:
    blocks = []
    for number, caption in enumerate(_captions(recording, limits), start=1):
        text = _lines(caption).replace("-->", "→")  # some readers take it for the mark between times, and SRT has no escapes
        blocks.append(f"{number}\n{_times(caption, ',')}\n{text}\n")
    return "\n".join(blocks)


def _vtt(recording: Recording, limits: CaptionLimits) -> str:
    # WebVTT reads & and < as the beginning of a mark, and --> as that of a caption.
    escaped = (
        f"{_times(caption, '.')}\n{_lines(caption).replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')}\n"
        for caption in _captions(recording, limits)
    )
    return "\n".join(["WEBVTT\n", *escaped])


def _tsv(recording: Recording, _: CaptionLimits) -> str:
    """Whisper's table: milliseconds, and the text without tabs."""
    rows = (f"{round(1000 * part.start)}\t{round(1000 * part.end)}\t{' '.join(part.text.split())}\n" for part in recording.segments)
    return "".join(["start\tend\ttext\n", *rows])


def _captions(recording: Recording, limits: CaptionLimits) -> list[Caption]:
    return list(captions(recording.segments, max_line_width=limits.max_line_width, max_line_count=limits.max_line_count))


def _lines(caption: Caption) -> str:
    return "\n".join(caption.lines)


def _times(caption: Caption, mark: str) -> str:
    return f"{_clock(caption.start, mark)} --> {_clock(caption.end, mark)}"


def _clock(milliseconds: int, mark: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{mark}{rest:03}"


@dataclass(frozen=True)
class _Written:
    suffix: str
    write: Callable[[Recording, CaptionLimits], str]


FORMS: dict[str, _Written] = {
    "json": _Written("json", _json),
    "verbose_json": _Written("verbose.json", _verbose_json),
    "txt": _Written("txt", _txt),
    "srt": _Written("srt", _srt),
    "vtt": _Written("vtt", _vtt),
    "tsv": _Written("tsv", _tsv),
}
"""The formats with a file for each recording: the file's suffix, and what is in it."""
