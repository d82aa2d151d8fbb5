"""A transcript as the answer that was asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.responses import PlainTextResponse, Response

from arkfast.files.json_text import json_text
from arkfast.infer.formats import CaptionLimits, written
from arkfast.infer.formats.captions import Segment
from arkfast.infer.formats.recordings import Recording
from arkfast.records import JsonObject
from arkfast.serve.errors import ApiError
from arkfast.serve.fields import Asked
from arkfast.serve.work import Said, Transcript

_CAPTIONS = {"srt": "application/x-subrip", "vtt": "text/vtt"}


def json_answer(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON in which no number is infinite or NaN."""
    return Response(json_text(value), status_code=status, headers=headers, media_type="application/json")


def answer(transcript: Transcript, asked: Asked) -> Response:
    """A complete transcript in the format that was asked for. In formats without room for warnings they are left out."""
    if asked.format == "json":
        return json_answer({"text": transcript.text, "usage": usage(transcript)} | _warnings(transcript))
    if asked.format == "verbose_json":
        return json_answer(_verbose(transcript, asked))
    if asked.format == "text":
        return PlainTextResponse(f"{transcript.text}\n")
    parts: list[tuple[Segment, JsonObject]] = [(Segment(said.begin, said.end, said.text), {}) for said in transcript.said]
    captions = written(Recording("", asked.language, parts), asked.format, CaptionLimits())
    return Response(captions, media_type=_CAPTIONS[asked.format])


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
            "segments": _segments(transcript),
        }
        | _warnings(transcript)
    )


def usage(transcript: Transcript) -> JsonObject:
    """What OpenAI's answers say of the audio that was transcribed."""
    return {"type": "duration", "seconds": round(transcript.heard.seconds, 3)}


async def events(transcript: Transcript, texts: AsyncIterator[Said]) -> AsyncIterator[bytes]:
    """OpenAI's events: a ``transcript.text.delta`` for each clip and ``transcript.text.done``; ``error`` where it fails."""
    try:
        async for said in texts:
            if said.delta:
                yield _event({"type": "transcript.text.delta", "delta": said.delta})
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
    return {
        "task": "transcribe",
        "language": asked.language,
        "duration": round(max((said.end for said in transcript.said), default=transcript.heard.seconds), 3),
        "text": transcript.text,
        "segments": _segments(transcript),
        "usage": usage(transcript),
        "finish_reason": _reason(transcript),
    } | _warnings(transcript)


def _segments(transcript: Transcript) -> list[JsonObject]:
    return [
        {"id": number, "start": round(said.begin, 3), "end": round(said.end, 3), "text": said.text, "finish_reason": said.finish_reason}
        for number, said in enumerate(transcript.said)
    ]


def _reason(transcript: Transcript) -> str:
    return next((said.finish_reason for said in transcript.said if said.finish_reason != "stop"), "stop")


def _warnings(transcript: Transcript) -> JsonObject:
    return {"warnings": transcript.warnings} if transcript.warnings else {}
