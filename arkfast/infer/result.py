"""What became of one input row, and the output row that says so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from arkfast.audio.load import Used
from arkfast.data import Fields
from arkfast.data.rows import Row
from arkfast.data.transcript import clean_transcript
from arkfast.files.json_input import parse_json
from arkfast.files.json_text import is_finite
from arkfast.files.remote import address_in
from arkfast.records import JsonObject, JsonRow, Utterance

FinishReason = Literal["stop", "length", "repetition", "no_speech"]

DETECTED = "detected_language"
"""The language that the model heard, by its own name for it and None where it named none; in rows whose language it was not told, where it
is a model that names languages."""
SCORES = (
    "no_speech", "no_speech_prob", "avg_logprob", "compression_ratio", "repetition", "confidence", "word_confidence", DETECTED,
)  # fmt: skip
"""What may be said of a transcript beside its text (``arkfast.infer.scored``)."""

CUT_SHORT: tuple[FinishReason, ...] = ("length", "repetition")
"""Reasons of a transcript that the model did not end itself."""

OUTPUT_FIELDS = (
    "audio", "text", "pred_text", "pred_text_raw", "begin_time", "end_time", "id", "language", "status", "finish_reason", "error",
    "audio_seconds", "warnings", "audio_used", "vad", "segments", "words", "words_error",
    *SCORES,
)  # fmt: skip
"""Fields that transcription writes. An input row's own values under these names never reach the output, because a stale transcript could
be taken for a new one."""

_UNWRITABLE = "field '{}' of the input holds a number that is infinite or NaN, for which JSON has no form; null is written"
WHOLE = -1.0  # seconds: the recording's own start or end, as manifests write it


@dataclass(frozen=True, kw_only=True)
class Result:
    """A transcript, or why there is none."""

    utterance: Utterance
    """The row that was to be transcribed."""
    text_raw: str | None = None
    """What the model wrote, special tokens removed; None when the row failed."""
    finish_reason: FinishReason | None = None
    """``stop`` when the model ended the transcript, ``length`` when it was cut at its token limit, ``repetition`` when it was cut because
    it repeated itself, ``no_speech`` when its text was left out because there was no speech; None when the row failed."""
    error: str | None = None
    """Why there is no transcript; None when there is one."""
    seconds: float = 0.0
    """Seconds of audio that were transcribed."""
    warnings: tuple[str, ...] = ()
    """A sentence for each thing about the recording that is doubtful without being an error."""
    used: Used = field(default_factory=dict)
    """What was heard of several channels or audio tracks, as ``arkfast.audio.Loaded.used`` has it."""
    scores: JsonRow = field(default_factory=dict)
    """Of ``SCORES`` what was asked for."""
    vad: str | None = None
    """What chose the places where the recording was cut, since it was longer than a clip may be; None where it was not cut."""
    segments: Sequence[JsonRow] = ()
    """Of a recording that was cut: ``start`` and ``end`` in the recording's seconds, ``text`` and ``finish_reason`` of each clip, None
    with an ``error`` where it has no transcript; ascending and without overlap."""
    words: Sequence[JsonObject] | None = None
    """Where times of words were asked for: ``word``, ``start`` and ``end`` of each, and ``characters`` where their times were; ascending
    and without overlap. Seconds count from the start of the clip, and of a recording that was cut from the recording's."""
    words_error: str | None = None
    """Why words of the transcript have no times though they were asked for."""

    def __post_init__(self) -> None:
        assert (self.text_raw is None) == (self.error is not None), "a result is either a transcript or an error"

    @property
    def failed(self) -> bool:
        """Whether there is no transcript."""
        return self.error is not None

    def row(self) -> JsonObject:
        """The output row: ``OUTPUT_FIELDS``, then the input's other fields. ``error`` stands in failed rows only and ``audio_seconds``
        in the others; ``warnings``, ``audio_used``, ``segments`` and ``vad`` stand where there is something to say; ``words`` where they
        were asked for, None with a ``words_error`` where none has a time.

        ``audio`` stands as the input gave it (None for samples in memory); ``begin_time`` and ``end_time`` are seconds, −1 for the
        recording's own. A failed row's ``pred_text`` is None, never an empty transcript.
        """
        utterance = self.utterance
        path = utterance.audio if isinstance(utterance.audio, str) else None
        row: JsonObject = {
            "audio": utterance.extra.get("audio", path) or None,
            "text": utterance.text,
            "pred_text": None if self.text_raw is None else clean_transcript(self.text_raw),
            "pred_text_raw": self.text_raw,
            "begin_time": WHOLE if utterance.begin is None else utterance.begin,
            "end_time": WHOLE if utterance.end is None else utterance.end,
            "id": utterance.id,
            "language": utterance.language,
            "status": "error" if self.failed else "ok",
            "finish_reason": self.finish_reason,
        }
        if self.failed:
            row["error"] = self.error
        else:
            row["audio_seconds"] = round(self.seconds, 3)
        extra = {key: value for key, value in utterance.extra.items() if key not in OUTPUT_FIELDS}
        warnings = [*self.warnings, *(_UNWRITABLE.format(key) for key, value in extra.items() if not is_finite(value))]
        if warnings:
            row["warnings"] = warnings
        if self.used:
            row["audio_used"] = dict(self.used)
        if self.vad is not None:
            row |= {"vad": self.vad, "segments": [dict(segment) for segment in self.segments]}
        if self.words is not None or self.words_error is not None:
            shift = 0.0 if self.vad is not None or utterance.begin is None else max(utterance.begin, 0.0)
            row["words"] = None if self.words is None else later(self.words, shift)
        if self.words_error is not None:
            row["words_error"] = self.words_error
        return row | dict(self.scores) | extra


def later(words: Sequence[JsonObject], seconds: float, *, end: float = math.inf) -> list[JsonObject]:
    """``Result.words`` with times that are ``seconds`` later, to a millisecond, and none before ``seconds`` or after ``end``."""

    def moved(row: JsonObject) -> JsonObject:
        start, stop = (min(end, max(seconds, round(row[name] + seconds, 3))) for name in ("start", "end"))
        return row | {"start": start, "end": stop} | ({"characters": [moved(c) for c in row["characters"]]} if "characters" in row else {})

    return [moved(word) for word in words]


def bad_line(bad: Row, *, fields: Fields) -> Result:
    """The failed result of a manifest line that is not an utterance.

    The line's number and text go into the fields ``line`` and ``raw_line``. Where the line is a JSON object, whatever is sound in it is
    kept, so that a failed row's reference still counts.
    """
    try:
        parsed = parse_json(bad.raw)
    except ValueError:
        parsed = None
    given = parsed if isinstance(parsed, dict) else {}
    identity, audio, text, language = (given.get(name) for name in ("id", fields.audio, fields.text, "language"))
    known = {"id", "language", fields.audio, fields.text, fields.begin, fields.end}
    utterance = Utterance(
        id=bad.default_id if identity is None else str(identity),
        audio=audio if isinstance(audio, str) else "",
        begin=_seconds(given.get(fields.begin)),
        end=_seconds(given.get(fields.end)),
        text=text if isinstance(text, str) else None,
        language=language if isinstance(language, str) else None,
        extra={key: value for key, value in given.items() if key not in known} | {"line": bad.number, "raw_line": bad.raw.rstrip("\r\n")},
        where=f"{address_in(bad.source) or bad.source}:{bad.number}",
    )
    return Result(utterance=utterance, error=str(bad.error))


def _seconds(value: object) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    return None
