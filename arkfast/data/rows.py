"""One manifest row as an ``Utterance``, or as the reason why it is none.

Fields are the original's (``audio``, ``text``, ``task``, ``begin_time``, ``end_time``) plus ``id``, ``language``, ``channel`` and
``audio_track``. Any other field passes through in ``Utterance.extra``, and so do ``audio``, ``task``, ``channel`` and ``audio_track`` as
the row gives them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from arkfast.audio.channels import parse_channel
from arkfast.data.shards import TarMember
from arkfast.files.inputs import local_path
from arkfast.files.json_input import parse_json
from arkfast.files.remote import beside, check_remote, is_remote, shown
from arkfast.records import InputError, JsonObject, JsonRow, OnTruncated, Utterance

NEMO_AUDIO = "audio_filepath"
"""The field by which a NeMo row is known."""

RowForm = Literal["auto", "jsonl", "nemo"]
"""How a row names its fields; ``auto`` takes a row with ``audio_filepath`` and no audio field of ours for NeMo's."""


class RowError(InputError):
    """A bad row. The message names it; ``kind`` is the fault in a word or two, the same for all rows with that fault."""

    def __init__(self, message: str, kind: str = "row") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Under which names a row keeps what, and what holds for rows that do not say."""

    audio: str = "audio"
    """The recording's path."""
    text: str = "text"
    """The reference transcript."""
    begin: str = "begin_time"
    """The segment's start in seconds; −1 or null is the recording's start."""
    end: str = "end_time"
    """The segment's end in seconds; −1 or null is the recording's end."""
    channel: tuple[int, ...] | None = None
    """``Utterance.channel`` of rows without a ``channel``."""
    audio_track: int | None = None
    """``Utterance.audio_track`` of rows without an ``audio_track``."""
    on_truncated: OnTruncated = "warn"
    """``Utterance.on_truncated`` of all rows."""
    remote: bool = False
    """Whether a recording may be of another machine, by an address such as ``s3://bucket/a.wav``."""


ORIGINAL = Fields()


@dataclass(frozen=True, kw_only=True)
class Row:
    """What stands at one place of a manifest: an utterance or an error, never both."""

    source: Path
    """The file read: a JSONL file or a tar shard."""
    number: int
    """Line of a JSONL file, or sample of a shard, from 1."""
    raw: str
    """The line, or the text that stands beside the recording in a shard."""
    end: int
    """Bytes of ``source`` up to and including this row."""
    default_id: str = ""
    """What the row is called where it gives no id of its own; unique among all files that were read."""
    utterance: Utterance | None = None
    """The row, where it is good."""
    error: RowError | None = None
    """What is wrong with it, where it is not."""

    def __post_init__(self) -> None:
        assert (self.utterance is None) == (self.error is not None), "a row is either an utterance or an error"


def parse_object(text: str, where: str) -> JsonObject:
    """The JSON object that ``text`` spells.

    Raises:
        RowError: it spells none.
    """
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        raise RowError(f"{where}: not valid JSON ({error.msg} at column {error.colno}); expected one object a line", "not JSON") from error
    except ValueError as error:  # an integer of thousands of digits; lists nested very deep
        raise RowError(f"{where}: JSON that cannot be read ({error}); expected one object a line", "not JSON") from error
    if not isinstance(value, dict):
        raise RowError(f"{where}: expected a JSON object, got {type(value).__name__}", "not JSON")
    return value


def to_utterance(
    row: JsonRow,
    *,
    where: str,
    default_id: str,
    folder: Path | str | None,
    fields: Fields = ORIGINAL,
    task: str = "asr",
    form: RowForm = "auto",
) -> Utterance:
    """The utterance that a row describes.

    Args:
        row: the row's fields.
        where: what errors call the row, as ``file:line``.
        default_id: the id of a row that gives none.
        folder: what a relative audio path starts from, an address where it is text; None leaves paths as they are.
        fields: names of the fields of a row in arkfast's form.
        task: rows of another task are errors.
        form: whose field names the row uses.

    Raises:
        RowError: a field is missing or of the wrong kind, or the row is of another task.
    """
    channel, audio_track = _channel(row, fields.channel, where), _audio_track(row, fields.audio_track, where)
    on_truncated, may_fetch = fields.on_truncated, fields.remote  # a NeMo row's fields are replaced below
    if form == "nemo" or (form == "auto" and NEMO_AUDIO in row and fields.audio not in row):
        row, fields = _from_nemo(row, where), ORIGINAL
        audio_field = NEMO_AUDIO
    else:
        audio_field = fields.audio
    row_task = row.get("task") or task
    if row_task != task:
        raise RowError(f"{where}: task '{row_task}' in a run of task '{task}'; remove the row or give it its own manifest", "other task")
    audio = row.get(fields.audio)
    if (not isinstance(audio, str) or not audio) and not (audio is None and _hears_nothing(task)):
        raise RowError(f"{where}: field '{audio_field}' must be the path of a recording, got {_shown(audio)}", "audio field")
    path = None if audio is None else _local(audio, where)
    if path is not None and folder is not None:
        path = _resolved(path, folder)
    if path is not None and is_remote(path):
        _check_address(path, where, read=may_fetch)
    text = _text(row, fields.text, where)
    language = _text(row, "language", where)
    begin, end = _time(row, fields.begin, where), _time(row, fields.end, where)
    _number(row, "duration", where)  # passes through, and batches are planned by it
    if begin is not None and end is not None and begin >= end:
        relation = "at" if begin == end else "past"
        raise RowError(f"{where}: {fields.begin} {begin:g} is {relation} {fields.end} {end:g}; a segment needs a length", "empty segment")
    identity = row.get("id")
    if identity is not None and (isinstance(identity, (bool, list, dict)) or identity == ""):
        raise RowError(f"{where}: field 'id' must be text or a number, got {_shown(identity)}", "id field")
    known = {fields.audio, fields.text, fields.begin, fields.end, "id", "language"}
    utterance = Utterance(
        id=str(identity) if identity is not None else default_id,
        audio=path,
        begin=begin,
        end=end,
        channel=channel,
        audio_track=audio_track,
        on_truncated=on_truncated,
        text=text,
        language=language,
        task=row_task,
        extra={key: value for key, value in row.items() if key not in known} | ({} if audio is None else {"audio": audio}),
        where=where,
    )
    _check_characters(utterance)
    return utterance


def _hears_nothing(task: str) -> bool:
    from arkfast.data.tasks import find_task  # tasks read rows' lengths through the modules that read rows

    return not find_task(task).hears


def _from_nemo(row: JsonRow, where: str) -> JsonObject:
    """A NeMo row under our names: ``offset`` and ``duration`` become the segment.

    Without an ``offset`` the row is a whole recording and ``duration`` its length, rounded as the writer pleased, so it makes no segment.
    """
    converted = {key: value for key, value in row.items() if key not in (NEMO_AUDIO, "offset", "duration")}
    converted["audio"] = row.get(NEMO_AUDIO)
    offset, duration = _number(row, "offset", where), _number(row, "duration", where)
    if offset is not None and offset < 0:
        raise RowError(f"{where}: offset must not be negative, got {offset:g}", "time field")
    if duration is not None and duration <= 0:
        raise RowError(f"{where}: duration must be above 0, got {duration:g}", "time field")
    if offset is not None:
        converted["begin_time"] = offset
        converted["end_time"] = None if duration is None else offset + duration
    elif duration is not None:
        converted["duration"] = duration
    for ours, theirs in (("language", ("lang", "source_lang")), ("task", ("taskname",))):
        given = [row[name] for name in (ours, *theirs) if row.get(name) is not None]
        if given:
            converted[ours] = given[0]
    return converted


def _channel(row: JsonRow, otherwise: tuple[int, ...] | None, where: str) -> tuple[int, ...] | None:
    """The row's choice of channels. Text that is none, such as the name of a broadcaster, is another field of that name."""
    value = row.get("channel")
    if value is None:
        return otherwise
    try:
        return parse_channel(value)
    except ValueError as error:
        if isinstance(value, str):
            return otherwise
        raise RowError(f"{where}: field 'channel': {error}, got {_shown(value)}", "channel field") from error


def _audio_track(row: JsonRow, otherwise: int | None, where: str) -> int | None:
    value = row.get("audio_track")
    if value is None:
        return otherwise
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RowError(f"{where}: field 'audio_track' must be an audio track's number from 0, got {_shown(value)}", "audio_track field")
    return value


def _local(audio: str, where: str) -> str:
    """The path that an audio field means, which may begin with ``file://`` or ``~``."""
    try:
        return local_path(audio)
    except InputError as error:
        raise RowError(f"{where}: {error}", "audio field") from error


def _check_address(address: str, where: str, *, read: bool) -> None:
    if not read:
        raise RowError(f"{where}: '{shown(address)}' is an address, not a path: download the recording first", "audio field")
    if TarMember.parse(address):
        raise RowError(f"{where}: '{shown(address)}' is in a tar file of another machine; copy the file here", "audio field")
    try:
        check_remote(address)
    except InputError as error:
        raise RowError(f"{where}: {error}", "audio field") from error


def _resolved(audio: str, folder: Path | str) -> str:
    if is_remote(audio):
        return audio
    if isinstance(folder, str):  # of a manifest of another machine
        return audio if audio.startswith("/") else beside(folder, audio)
    if member := TarMember.parse(audio):
        return str(replace(member, path=str(folder / member.path)))
    return str(folder / audio)


def _check_characters(utterance: Utterance) -> None:
    """JSON escapes can spell half of a surrogate pair, which no encoding can write and no tokenizer read."""
    for name, value in (("id", utterance.id), ("audio", utterance.audio), ("text", utterance.text), ("language", utterance.language)):
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            kind = f"{name} field"
            raise RowError(
                f"{utterance.where}: {name} holds half of a surrogate pair at character {error.start}; repair it", kind
            ) from error


def _text(row: JsonRow, name: str, where: str) -> str | None:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise RowError(f"{where}: field '{name}' must be text, got {_shown(value)}", f"{name} field")
    return value


def _number(row: JsonRow, name: str, where: str, hint: str = "") -> float | None:
    value = row.get(name)
    if value is None:
        return None
    try:
        if not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer past the range of floats
        pass
    raise RowError(f"{where}: {name} must be a number of seconds{hint}, got {_shown(value)}", "time field")


def _time(row: JsonRow, name: str, where: str) -> float | None:
    value = _number(row, name, where, " (-1 for the whole file)")
    return None if value is None or value < 0 else value


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
