"""What a request asks for, checked field by field before any work is done."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from arkfast.metrics.languages import canonical, is_known
from arkfast.records import JsonObject
from arkfast.serve.errors import ApiError
from arkfast.serve.options import NAME

Format = Literal["json", "text", "srt", "vtt", "verbose_json"]
FORMATS: tuple[Format, ...] = get_args(Format)
MOST_PROMPT = 4096  # characters
MOST_HOTWORDS, MOST_HOTWORDS_CHARACTERS = 100, 2000
MOST_TEMPERATURE, MOST_PENALTY, MOST_TOP_K, MOST_SEED = 2.0, 10.0, 1_000_000, (1 << 63) - 1


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request's fields."""

    format: Format = "json"
    """How the answer is written."""
    stream: bool = False
    """Whether it comes as server-sent events, as the transcript grows."""
    words: bool = False
    """Whether times of words are wanted."""
    language: str | None = None
    """Code of the language of the speech, as the client says it."""
    prompt: str = ""
    """What the client says about the recording."""
    hotwords: tuple[str, ...] = ()
    """Phrases that are preferred."""
    begin: float | None = None
    """Where the wanted part of the recording begins, in seconds."""
    end: float | None = None
    """Where it ends."""
    max_new_tokens: int | None = None
    """Token limit of each clip's transcript; None takes the service's."""
    temperature: float = 0.0
    """0 takes the best token."""
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0

    def sampling(self) -> JsonObject:
        """How tokens are chosen, by open-audio-opd's names."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "repetition_penalty": self.repetition_penalty,
        }


def asked(form: Mapping[str, Sequence[str]], *, names: Sequence[str], max_new_tokens: int, original: bool = False) -> Asked:
    """The fields of a form.

    Args:
        form: each field's values, but for the file.
        names: what the served model is called.
        max_new_tokens: the most that may be asked for.
        original: the form is open-audio-opd's ``/asr``, which has no format, no stream and needs no model; -1 is a recording's own begin
            or end there, and in the other form too.

    Raises:
        ApiError: 400 with the field's name, or 404 for a model that is not served.
    """
    taken = _ORIGINAL if original else _OPENAI
    for name, values in form.items():
        if name not in taken:
            raise _bad(name, f"is not known here. Known are: {', '.join(sorted(taken))}.")
        if len(values) > 1 and not name.endswith("[]") and name != "timestamp_granularities":
            raise _bad(name, f"was given {len(values)} times. Give it once.")
    one = {name: values[0] for name, values in form.items() if values}
    model = one.get("model", NAME)
    if model not in names:
        message = f"The model '{_shown(model)}' is not served here. Served is '{names[0]}'."
        raise ApiError(404, message, param="model", code="model_not_found")
    begin, end = _seconds(one, "begin_time"), _seconds(one, "end_time")
    if begin is not None and end is not None and begin >= end:
        raise _bad("begin_time", f"{begin:g} is not before end_time {end:g}.")
    format_ = one.get("response_format", "json")
    if format_ not in FORMATS:
        raise _bad("response_format", f"must be one of {', '.join(FORMATS)}, got '{_shown(format_)}'.")
    stream = _flag(one, "stream")
    if stream and format_ not in ("json", "text"):
        raise _bad("stream", f"goes with the formats json and text, not with {format_}.")
    granularities = [*form.get("timestamp_granularities[]", ()), *form.get("timestamp_granularities", ())]
    for value in granularities:
        if value not in ("segment", "word"):
            raise _bad("timestamp_granularities[]", f"must be segment or word, got '{_shown(value)}'.")
    if granularities and format_ != "verbose_json":
        raise _bad("timestamp_granularities[]", "needs response_format verbose_json.")
    return Asked(
        format=format_,
        stream=stream,
        words="word" in granularities,
        language=_language(one),
        prompt=_prompt(one),
        hotwords=_hotwords(one),
        begin=begin,
        end=end,
        max_new_tokens=_whole(one, "max_new_tokens", None, least=1, most=max_new_tokens),
        temperature=_number(one, "temperature", 0.0, least=0.0, most=MOST_TEMPERATURE),
        top_p=_number(one, "top_p", 1.0, least=0.0, most=1.0, above=True),
        top_k=_whole(one, "top_k", 0, least=0, most=MOST_TOP_K) or 0,
        repetition_penalty=_number(one, "repetition_penalty", 1.0, least=0.0, most=MOST_PENALTY, above=True),
        seed=_whole(one, "seed", 0, least=0, most=MOST_SEED) or 0,
    )


_SHARED = {
    "begin_time", "end_time", "max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "model", "language",
    "hotwords",
}  # fmt: skip
_ORIGINAL = frozenset(_SHARED)
_OPENAI = frozenset(
    _SHARED | {"prompt", "response_format", "stream", "timestamp_granularities[]", "timestamp_granularities", "chunking_strategy"}
)


def _bad(param: str, what: str) -> ApiError:
    return ApiError(400, f"The field {_shown(param)} {what}", param=_shown(param), code="invalid_value")


def _shown(text: str) -> str:
    """As much of what a client sent as belongs in a message."""
    kept = "".join(character if character.isprintable() else "�" for character in text[:64])
    return kept + ("…" if len(text) > 64 else "")


def _number(form: Mapping[str, str], name: str, default: float, *, least: float, most: float, above: bool = False) -> float:
    if name not in form:
        return default
    try:
        value = float(form[name])
    except ValueError:
        raise _bad(name, f"must be a number, got '{_shown(form[name])}'.") from None
    if not math.isfinite(value) or value > most or value < least or (above and value == least):
        raise _bad(name, f"must be {'above' if above else 'at least'} {least:g} and at most {most:g}, got '{_shown(form[name])}'.")
    if 0 < value < 1e-6:
        raise _bad(name, f"is too small, got '{_shown(form[name])}'.")
    return value


def _whole(form: Mapping[str, str], name: str, default: int | None, *, least: int, most: int) -> int | None:
    if name not in form:
        return default
    text = form[name].strip()
    if not re.fullmatch(r"-?[0-9]{1,19}", text) or not least <= int(text) <= most:
        raise _bad(name, f"must be a whole number from {least} to {most}, got '{_shown(form[name])}'.")
    return int(text)


def _seconds(form: Mapping[str, str], name: str) -> float | None:
    text = form.get(name, "-1")
    try:
        value = float(text)
    except ValueError:
        raise _bad(name, f"must be a number of seconds, got '{_shown(text)}'.") from None
    if value == -1:
        return None
    if not 0 <= value < 1e7:
        raise _bad(name, f"must be a number of seconds from 0 on, or -1 for the recording's own, got '{_shown(text)}'.")
    return value


def _flag(form: Mapping[str, str], name: str) -> bool:
    text = form.get(name, "false").strip().lower()
    if text not in ("true", "false", "1", "0"):
        raise _bad(name, f"must be true or false, got '{_shown(text)}'.")
    return text in ("true", "1")


def _language(form: Mapping[str, str]) -> str | None:
    text = form.get("language", "").strip()
    if not text:
        return None
    code = canonical(text[:64])
    if code is None or not is_known(code):
        raise _bad("language", f"'{_shown(text)}' is no language that is known here; give a code such as en.")
    return code


def _prompt(form: Mapping[str, str]) -> str:
    text = form.get("prompt", "")
    if len(text) > MOST_PROMPT:
        raise _bad("prompt", f"may have at most {MOST_PROMPT} characters, got {len(text)}.")
    return text


def _hotwords(form: Mapping[str, str]) -> tuple[str, ...]:
    """Phrases with commas or line feeds between."""
    text = form.get("hotwords", "")
    if len(text) > MOST_HOTWORDS_CHARACTERS:
        raise _bad("hotwords", f"may have at most {MOST_HOTWORDS_CHARACTERS} characters, got {len(text)}.")
    phrases = tuple(dict.fromkeys(phrase.strip() for line in text.splitlines() for phrase in line.split(",") if phrase.strip()))
    if len(phrases) > MOST_HOTWORDS:
        raise _bad("hotwords", f"may hold at most {MOST_HOTWORDS} phrases, got {len(phrases)}.")
    return phrases
