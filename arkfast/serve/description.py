"""What ``GET /openapi.json`` says of the routes, since forms are read by hand: before anything is parsed, sizes and keys are checked."""

from __future__ import annotations

from typing import NamedTuple

from arkfast.records import JsonObject
from arkfast.serve.fields import FORMATS, MOST_HOTWORDS_CHARACTERS, MOST_PENALTY, MOST_PROMPT, MOST_SEED, MOST_TEMPERATURE, MOST_TOP_K

_NULLABLE_TEXT: JsonObject = {"anyOf": [{"type": "string"}, {"type": "null"}]}
_ERROR: JsonObject = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}, "param": _NULLABLE_TEXT, "code": _NULLABLE_TEXT},
        }
    },
}
_SENTENCES = {
    400: "A field or the recording is wrong.", 401: "No key, or one that is not known.", 403: "A foreign page or host.",
    404: "The model is not served, or there is no such file.", 408: "The request arrived too slowly.",
    413: "The request or the recording is too large.",
    415: "Not multipart/form-data.", 429: "Too many requests at once.", 500: "The service failed.", 503: "Not now: Retry-After says when.",
}  # fmt: skip


def _errors(*statuses: int) -> dict[int | str, JsonObject]:
    return {status: {"description": _SENTENCES[status], "content": {"application/json": {"schema": _ERROR}}} for status in statuses}


def _answers(content: JsonObject, *errors: int) -> dict[int | str, JsonObject]:
    return {200: {"description": "The answer.", "content": content}, **_errors(*errors)}


def _number(least: float, most: float, default: float, **more: object) -> JsonObject:
    return {"type": "number", "minimum": least, "maximum": most, "default": default, **more}


_COMMON: JsonObject = {
    "file": {"type": "string", "format": "binary", "description": "The recording."},
    "model": {"type": "string", "description": "ark-asr, or the name that GET /v1/models gives."},
    "language": {"type": "string", "description": "Code of the language of the speech."},
    "begin_time": {"type": "number", "default": -1, "description": "Start of the wanted part in seconds; -1 is the recording's start."},
    "end_time": {"type": "number", "default": -1, "description": "End of the wanted part in seconds; -1 is the recording's end."},
    "max_new_tokens": {"type": "integer", "minimum": 1, "description": "Token limit of each clip's transcript."},
    "temperature": _number(0, MOST_TEMPERATURE, 0),
    "top_p": _number(1e-6, 1, 1),
    "top_k": {"type": "integer", "minimum": 0, "maximum": MOST_TOP_K, "default": 0},
    "repetition_penalty": _number(1e-6, MOST_PENALTY, 1),
    "hotwords": {
        "type": "string",
        "maxLength": MOST_HOTWORDS_CHARACTERS,
        "description": "Phrases that are preferred, with commas or line feeds between.",
    },
    "seed": {"type": "integer", "minimum": 0, "maximum": MOST_SEED, "default": 0},
}
_GRANULARITIES: JsonObject = {"type": "array", "items": {"type": "string", "enum": ["segment", "word"]}}
_OPENAI: JsonObject = _COMMON | {
    "prompt": {"type": "string", "maxLength": MOST_PROMPT},
    "response_format": {"type": "string", "enum": list(FORMATS), "default": "json"},
    "stream": {"type": "boolean", "default": False},
    "timestamp_granularities[]": _GRANULARITIES,
    "timestamp_granularities": _GRANULARITIES,
    "chunking_strategy": {"type": "string", "description": "Without effect: long recordings are always cut at quiet places."},
}


class Description(NamedTuple):
    """What is said of a route."""

    summary: str
    responses: dict[int | str, JsonObject]
    extra: JsonObject | None = None
    """The body or the parameters that it takes."""


def _form(properties: JsonObject) -> JsonObject:
    schema = {"type": "object", "required": ["file"], "properties": properties, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


_JSON: JsonObject = {"application/json": {"schema": {"type": "object"}}}
_TEXT: JsonObject = {"text/plain": {"schema": {"type": "string"}}}
_ANY: JsonObject = {
    **_JSON,
    **{kind: {"schema": {"type": "string"}} for kind in ("text/plain", "application/x-subrip", "text/vtt", "text/event-stream")},
}
_HTML: JsonObject = {"text/html": {"schema": {"type": "string"}}}
_PAGE_FILE: JsonObject = {
    **_HTML,
    **{kind: {"schema": {"type": "string"}} for kind in ("text/css", "text/javascript", "image/svg+xml")},
}
_MODEL: JsonObject = {
    "type": "object",
    "required": ["model"],
    "properties": {"model": {"type": "string", "minLength": 1}, "revision": _NULLABLE_TEXT},
    "additionalProperties": False,
}
_POST = (400, 401, 403, 404, 408, 413, 415, 429, 500, 503)

TRANSCRIPTIONS = Description("A recording's transcript, as OpenAI's service gives it.", _answers(_ANY, *_POST), _form(_OPENAI))
ASR = Description("A recording's transcript, as open-audio-opd's service gives it.", _answers(_JSON, *_POST), _form(_COMMON))
TRANSLATIONS = Description("Always an error: the models do not translate.", _errors(400, 401, 403))
MODELS = Description("What is served.", _answers(_JSON, 401, 403))
TOKEN_MASK = Description("Which tokens a transcript may hold.", _answers(_JSON, 401, 403, 503))
HEALTH = Description("Whether the service is alive.", _answers(_JSON, 403))
READY = Description("Whether the engine decodes; it is asked to.", _answers(_JSON, 403, 503))
METRICS = Description("Prometheus metrics.", _answers(_TEXT, 401, 403))
PAGE = Description("The page on which people try the service.", _answers(_HTML, 403))
SETTINGS = Description("What the page must know beforehand: whether a key is needed, and limits.", _answers(_JSON, 403))
PAGE_FILE = Description(
    "A file of the page.",
    _answers(_PAGE_FILE, 403, 404),
    {"parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]},
)
MODEL = Description(
    "Load another model beside the one that serves, and let it take over.",
    _answers(_JSON, 400, 401, 403, 413),
    {"requestBody": {"required": True, "content": {"application/json": {"schema": _MODEL}}}},
)
