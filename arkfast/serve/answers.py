"""A transcript as the answer that was asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.responses import PlainTextResponse, Response

from arkfast.files.json_text import json_text
from arkfast.infer.formats import CaptionLimits, written
from arkfast.infer.formats.captions import Segment
from arkfast.infer.formats.recordings import Recording
from arkfast.infer.result import CUT_SHORT, DETECTED
from arkfast.metrics.languages import canonical
from arkfast.records import JsonObject
from arkfast.serve.errors import ApiError
from arkfast.serve.fields import Asked
from arkfast.serve.work import Transcript

UNKNOWN_LANGUAGE = "und"
"""ISO 639's code of a language that nobody has named; OpenAI's answers always hold one."""
WARNINGS_HEADER, MOST_HEADER = "X-Transcript-Warnings", 4000
SEEKS_PER_SECOND = 100
"""Of Whisper's ``seek``, which counts frames of features."""
_NOT_IN_SEGMENTS = ("word_confidence", DETECTED)
_CAPTIONS = {"srt": "application/x-subrip", "vtt": "text/vtt"}


def json_answer(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON in which no number is infinite or NaN."""
    return Response(json_text(value), status_code=status, headers=headers, media_type="application/json")


def answer(transcript: Transcript, asked: Asked) -> Response:
    """A complete transcript in the format that was asked for. In formats without room for warnings they stand in a header."""
    if asked.format == "json":
        return json_answer({"text": transcript.text, "usage": usage(transcript)} | _warnings(transcript))
    if asked.format == "verbose_json":
        return json_answer(_verbose(transcript, asked))
    if asked.format == "text":
        return PlainTextResponse(f"{transcript.text}\n", headers=_warnings_header(transcript))
    parts: list[tuple[Segment, JsonObject]] = [(Segment(said.begin, said.end, said.text), {}) for said in transcript.said]
    captions = written(Recording("", asked.language, parts), asked.format, CaptionLimits())
    return Response(captions, media_type=_CAPTIONS[asked.format], headers=_warnings_header(transcript))


def original_answer(transcript: Transcript, asked: Asked, seconds: float) -> Response:
    """What open-audio-opd's ``POST /asr`` answers, and why a transcript may not be whole.

    Args:
        transcript: the complete transcript.
        asked: the request's fields.
        seconds: that it took.
    """
    return json_answer(
        {
            "text": transcript.text,
            "latency_s": round(seconds, 4),
            "prompt_tokens": transcript.prompt_tokens,
            "sampling": asked.sampling() | {"max_new_tokens": asked.max_new_tokens},
            "finish_reason": _reason(transcript),
            "segments": _segments(transcript, asked),
        }
        | _warnings(transcript)
    )


def usage(transcript: Transcript) -> JsonObject:
    """What OpenAI's answers say of the audio that was transcribed."""
    return {"type": "duration", "seconds": round(transcript.heard.seconds, 3)}


async def events(transcript: Transcript, deltas: AsyncIterator[str]) -> AsyncIterator[bytes]:
    """OpenAI's events: a ``transcript.text.delta`` for each part of the transcript, then ``transcript.text.done``, or ``error`` where it
    fails."""
    try:
        async for delta in deltas:
            yield _event({"type": "transcript.text.delta", "delta": delta})
    except ApiError as error:
        yield error_event(error)
        return
    yield _event({"type": "transcript.text.done", "text": transcript.text, "usage": usage(transcript)} | _warnings(transcript))


def error_event(error: ApiError) -> bytes:
    """The event that ends a stream which cannot be completed."""
    return _event({"type": "error"} | error.body())


def _event(value: JsonObject) -> bytes:
    return f"data: {json_text(value)}\n\n".encode()


def _verbose(transcript: Transcript, asked: Asked) -> JsonObject:
    whole: JsonObject = {
        "task": "transcribe",
        "language": asked.language or _heard_language(transcript) or UNKNOWN_LANGUAGE,
        "duration": round(max((said.end for said in transcript.said), default=transcript.heard.seconds), 3),
        "text": transcript.text,
        "segments": _segments(transcript, asked),
        "usage": usage(transcript),
        "finish_reason": _reason(transcript),
    }
    if asked.words:
        whole["words"] = [word for said in transcript.said for word in said.words]
    return whole | _warnings(transcript)


def _heard_language(transcript: Transcript) -> str | None:
    """The language of which the model heard most, where it names languages."""
    seconds: dict[str, float] = {}
    for said in transcript.said:
        name = said.scores.get(DETECTED)
        if name is not None:
            seconds[name] = seconds.get(name, 0.0) + said.end - said.begin
    return canonical(max(seconds, key=seconds.__getitem__)) if seconds else None


def _segments(transcript: Transcript, asked: Asked) -> list[JsonObject]:
    """OpenAI's fields and, where they are known, ``confidence``, ``repetition`` and ``no_speech``; what is not known is left out."""
    return [
        {
            "id": number,
            "seek": round(said.begin * SEEKS_PER_SECOND),
            "start": round(said.begin, 3),
            "end": round(said.end, 3),
            "text": said.text,
            "tokens": list(said.tokens),
            "temperature": asked.temperature,
            "finish_reason": said.finish_reason,
        }
        | {name: value for name, value in said.scores.items() if name not in _NOT_IN_SEGMENTS and value is not None}
        for number, said in enumerate(transcript.said)
    ]


def _reason(transcript: Transcript) -> str:
    """As transcription says it of a recording: a cut is told wherever it was, silence where there was nothing else."""
    reasons = [said.finish_reason for said in transcript.said]
    ended = "no_speech" if reasons and set(reasons) == {"no_speech"} else "stop"
    return next((reason for reason in reasons if reason in CUT_SHORT), ended)


def _warnings_header(transcript: Transcript) -> dict[str, str]:
    said = " ".join(transcript.warnings).encode("ascii", "replace").decode()
    return {WARNINGS_HEADER: " ".join(said.split())[:MOST_HEADER]} if said else {}


def _warnings(transcript: Transcript) -> JsonObject:
    return {"warnings": transcript.warnings} if transcript.warnings else {}
