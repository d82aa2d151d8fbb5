"""A chunk of rows on its way to an actor, and results on their way back: JSON in both directions, never pickled objects."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from arkfast.files import json_line
from arkfast.files.json_input import parse_json_object
from arkfast.infer.hotwords import FIELD as HOTWORDS
from arkfast.infer.journal import restored, stored
from arkfast.infer.result import Result
from arkfast.records import JsonObject, JsonRow, Utterance

HEARD = ("duration", HOTWORDS)
"""Fields of a row, beside those of an ``Utterance``, that its transcription looks at."""
_PLAIN = ("id", "audio", "begin", "end", "audio_track", "on_truncated", "language", "task", "where")


@dataclass(frozen=True)
class Given:
    """A row that is to be transcribed."""

    row: int
    """Its number."""
    key: str
    """``journal.key_of`` it."""
    utterance: Utterance
    clips: Mapping[str, JsonRow] = field(default_factory=dict)
    """What earlier runs left of clips of it (``Journal.clips``)."""


def packed(rows: Iterable[Given]) -> bytes:
    """A chunk as bytes. Reference texts and fields that are only passed through stay behind."""
    return zlib.compress(json_line({"rows": [_row(given) for given in rows]}))


def unpacked(content: bytes) -> list[Given]:
    """The rows of a chunk."""
    return [_given(row) for row in parse_json_object(zlib.decompress(content))["rows"]]


def _row(given: Given) -> JsonObject:
    utterance = given.utterance
    row: JsonObject = {name: getattr(utterance, name) for name in _PLAIN}
    row["extra"] = {name: utterance.extra[name] for name in HEARD if name in utterance.extra}
    row["channel"] = None if utterance.channel is None else list(utterance.channel)
    return {"row": given.row, "key": given.key, "clips": dict(given.clips), "utterance": row}


def _given(row: JsonRow) -> Given:
    asked: JsonObject = dict(row["utterance"])
    channel = asked.pop("channel")
    utterance = Utterance(**asked, channel=None if channel is None else tuple(channel))
    return Given(row["row"], row["key"], utterance, row["clips"])


class Notes:
    """What stands for the journal in an actor: results become entries that are sent back.

    Args:
        rows: the rows of a chunk.
    """

    held = 0

    def __init__(self, rows: Sequence[Given]) -> None:
        self._rows = {given.row: given for given in rows}
        self._entries: list[JsonObject] = []

    def holds(self, row: int) -> bool:
        """None was done before."""
        return False

    def find(self, row: int, key: str, utterance: Utterance, *, segment: str | None = None) -> Result | None:
        """See ``Journal.find``. The key is the sender's: what files are like is judged in one place."""
        values = None if segment is None else self._rows[row].clips.get(segment)
        return None if values is None else restored(values, utterance)

    def add(self, row: int, key: str, result: Result, *, segment: str | None = None) -> None:
        """See ``Journal.add``."""
        part = {} if segment is None else {"segment": segment}
        self._entries.append({"row": row, "key": self._rows[row].key, **part, "result": stored(result)})

    def take(self, least: int) -> list[bytes]:
        """The entries since the last call, where they are at least so many; none otherwise."""
        if len(self._entries) < least:
            return []
        taken, self._entries = self._entries, []
        return [json_line(entry) for entry in taken]
