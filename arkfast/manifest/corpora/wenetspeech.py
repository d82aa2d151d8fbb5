"""WenetSpeech: ``WenetSpeech.json`` with every recording, its segments and their subsets, and the recordings in ``audio/``.

The file has gigabytes in one JSON object, so recordings are taken from it one at a time. A segment is a row with its time in the recording;
nothing is cut out.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from arkfast.data.rows import RowError
from arkfast.manifest.corpora.corpus import Corpus, Split, SplitRow, choose, make_row
from arkfast.records import InputError, JsonObject

LANGUAGE = "zh"
FILE = "WenetSpeech.json"

# Segments as the corpus' paper and page have them; the training sets hold one another, S in M in L.
SPLITS = {
    "DEV": Split("DEV", "dev_wenetspeech.jsonl", 13_825),
    "TEST_NET": Split("TEST_NET", "test_net.jsonl", 24_774),
    "TEST_MEETING": Split("TEST_MEETING", "test_meeting.jsonl", 8_370),
    "S": Split("S", "train_wenetspeech_s.jsonl"),
    "M": Split("M", "train_wenetspeech_m.jsonl"),
    "L": Split("L", "train_wenetspeech_l.jsonl"),
    "W": Split("W", "train_wenetspeech_w.jsonl"),
}
DEFAULT = ("DEV", "TEST_NET", "TEST_MEETING")
"""What is written when no split is named: the training sets are another matter of size."""

_BLOCK = 1 << 20  # characters read at a time


def open_wenetspeech(root: Path, splits: Sequence[str] = ()) -> Corpus:
    """WenetSpeech in ``root`` or in ``root/untar`` or ``root/WenetSpeech``: the folder with ``WenetSpeech.json``.

    Raises:
        InputError: the file is not there, or a split is unknown.
    """
    base = next((path for path in (root, root / "WenetSpeech", root / "untar") if (path / FILE).is_file()), None)
    if base is None:
        raise InputError(f"{root}: no {FILE} there; give the folder that WenetSpeech was unpacked into")
    chosen = choose(splits or DEFAULT, SPLITS, list(SPLITS), base)
    names = [split.name for split in chosen]
    return Corpus(name="wenetspeech", root=base, splits=chosen, rows=lambda: _rows(base, names))


def _rows(base: Path, splits: Sequence[str]) -> Iterator[SplitRow]:
    number = 0  # of the segment, from 1: the file has one line
    for recording in recordings(base / FILE):
        segments = recording.get("segments")
        for segment in segments if isinstance(segments, list) else []:
            number += 1
            subsets = segment.get("subsets") if isinstance(segment, dict) else None
            if isinstance(subsets, list):
                yield from (_row(base, number, recording, segment, split) for split in splits if split in subsets)
            else:
                fault = RowError(f"{base / FILE}: segment {number} of {recording.get('aid', '?')} names no subsets", "segment")
                yield make_row(base / FILE, number, json.dumps(segment, ensure_ascii=False), splits[0], fault, folder=base)


def _row(base: Path, number: int, recording: JsonObject, segment: JsonObject, split: str) -> SplitRow:
    source, raw = base / FILE, json.dumps(segment, ensure_ascii=False)
    fields: JsonObject | RowError
    absent = [name for name in ("sid", "begin_time", "end_time", "text") if segment.get(name) is None]
    if absent:
        fields = RowError(f"{source}: segment {number} of {recording.get('aid', '?')} has no {' and no '.join(absent)}", "segment")
    else:
        fields = {
            "id": segment["sid"],
            "audio": recording.get("path"),
            "text": segment["text"],
            "language": LANGUAGE,
            "begin_time": segment["begin_time"],
            "end_time": segment["end_time"],
            "recording": recording.get("aid"),
            "tags": recording.get("tags"),
        }
    return make_row(source, number, raw, split, fields, folder=base)


def recordings(path: Path) -> Iterator[JsonObject]:
    """The objects of the list ``audios``, one at a time; memory is that of the largest.

    Raises:
        InputError: the file cannot be read, is not JSON, breaks off, or has no such list.
    """
    try:
        with path.open("rb") as file:
            yield from _Reader(path, file).audios()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


class _Reader:
    """A JSON object of any size, of which one member's items are wanted."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file
        self._decoder, self._json = codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder()
        self._text, self._at, self._ended = "", 0, False

    def audios(self) -> Iterator[JsonObject]:
        self._expect("{")
        while True:
            key = self._value()
            self._expect(":")
            if key == "audios":
                break
            self._value()
            if self._next() != ",":
                raise self._fault("has no list 'audios'")
        self._expect("[")
        if self._peek() == "]":
            return
        while True:
            item = self._value()
            if not isinstance(item, dict):
                raise self._fault(f"expected an object for each recording, got {type(item).__name__}")
            yield item
            after = self._next()
            if after == "]":
                return
            if after != ",":
                raise self._fault("is not valid JSON between two recordings")

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
                # a number at the end of the block may go on in the next
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if self._ended:
                    raise self._fault(f"is not valid JSON or breaks off ({error.msg})") from error
            self._read(len(self._text) - self._at)  # as much again: a long value costs no more than twice its length

    def _peek(self) -> str:
        """The next character that is no space, which stays."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self._at += 1
            if self._ended:
                raise self._fault("breaks off")
            self._read(0)

    def _next(self) -> str:
        character = self._peek()
        self._at += 1
        return character

    def _expect(self, wanted: str) -> None:
        if (got := self._next()) != wanted:
            raise self._fault(f"expected '{wanted}', got '{got}'")

    def _read(self, least: int) -> None:
        data = self._file.read(max(_BLOCK, least))
        self._ended = not data
        try:
            self._text = self._text[self._at :] + self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            raise self._fault("is not UTF-8") from error
        self._at = 0

    def _fault(self, what: str) -> InputError:
        return InputError(f"{self._path}: {what}; download the file again")
