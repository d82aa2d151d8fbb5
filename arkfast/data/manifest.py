"""JSONL manifests: one utterance a line, every bad line named.

Knows the row's fields; opens no audio. Fields are the original's (``audio``, ``text``, ``task``, ``begin_time``, ``end_time``) plus
``id`` and ``language``; any other field passes through in ``Utterance.extra`` (so do ``audio`` and ``task``, as the row gives them).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arkfast.records import InputError, Utterance


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Under which names a row keeps what."""

    audio: str = "audio"
    """The recording's path."""
    text: str = "text"
    """The reference transcript."""
    begin: str = "begin_time"
    """The segment's start in seconds; −1 or null is the recording's start."""
    end: str = "end_time"
    """The segment's end in seconds; −1 or null is the recording's end."""


OnError = Callable[[InputError, int, str], None]
ORIGINAL = Fields()


def iter_manifest(
    path: str | Path, *, fields: Fields = ORIGINAL, task: str = "asr", on_error: OnError | None = None
) -> Iterator[Utterance]:
    """Each row of a JSONL file as an ``Utterance``, in file order, in constant memory. Blank lines are skipped.

    Relative audio paths resolve against the manifest's folder. A row without ``id`` is named ``<file name>:<line>``.

    Args:
        path: the manifest.
        fields: names of the row's fields.
        task: rows whose ``task`` is something else are errors.
        on_error: called with (error, line number, the line) for a bad line, which is then skipped; None raises the first error.

    Raises:
        InputError: the file cannot be read, or a line is bad and ``on_error`` is None. Messages begin with ``file:line``.
    """
    path = Path(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a JSONL manifest") from error
    with file:
        for number, raw in enumerate(file, 1):
            line = raw.decode("utf-8", errors="replace")
            if not line.strip():
                continue
            try:
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise InputError(f"{path}:{number}: not UTF-8 text ({error.reason}); save the manifest as UTF-8") from error
                yield _utterance(line, path, number, fields, task)
            except InputError as error:
                if on_error is None:
                    raise
                on_error(error, number, line)


def read_manifest(path: str | Path, *, fields: Fields = ORIGINAL, task: str = "asr", limit: int | None = None) -> list[Utterance]:
    """All rows of a manifest (the first ``limit``), with ids checked for uniqueness.

    Raises:
        InputError: a bad line, a repeated id, or no rows at all.
    """
    rows: list[Utterance] = []
    seen: dict[str, str] = {}
    for utterance in iter_manifest(path, fields=fields, task=task):
        if limit is not None and len(rows) >= limit:
            break
        if utterance.id in seen:
            raise InputError(f"{utterance.where}: id '{utterance.id}' stands already at {seen[utterance.id]}; ids must be unique")
        seen[utterance.id] = utterance.where
        rows.append(utterance)
    if not rows:
        raise InputError(f"{path}: holds no rows; expected one JSON object a line")
    return rows


def _utterance(line: str, path: Path, number: int, fields: Fields, task: str) -> Utterance:
    where = f"{path}:{number}"
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({error.msg} at column {error.colno}); expected one object a line") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(row).__name__}")
    row_task = row.get("task") or task
    if row_task != task:
        raise InputError(f"{where}: task '{row_task}' in a run of task '{task}'; remove the row or give it its own manifest")
    audio = row.get(fields.audio)
    if not isinstance(audio, str) or not audio:
        raise InputError(f"{where}: field '{fields.audio}' must be the path of a recording, got {json.dumps(audio)}")
    text = row.get(fields.text)
    if text is not None and not isinstance(text, str):
        raise InputError(f"{where}: field '{fields.text}' must be text, got {json.dumps(text)}")
    language = row.get("language")
    if language is not None and not isinstance(language, str):
        raise InputError(f"{where}: field 'language' must be text, got {json.dumps(language)}")
    begin, end = _time(row, fields.begin, where), _time(row, fields.end, where)
    if begin is not None and end is not None and begin >= end:
        raise InputError(
            f"{where}: {fields.begin} {begin:g} is {'at' if begin == end else 'past'} {fields.end} {end:g}; a segment needs a length"
        )
    known = {fields.audio, fields.text, fields.begin, fields.end, "id", "language"}
    identity = row.get("id")
    return Utterance(
        id=str(identity) if identity is not None else f"{path.name}:{number}",
        audio=str(path.parent / audio),
        begin=begin,
        end=end,
        text=text,
        language=language,
        task=row_task,
        extra={key: value for key, value in row.items() if key not in known} | {"audio": audio},
        where=where,
    )


def _time(row: dict[str, Any], name: str, where: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{where}: {name} must be a number of seconds (-1 for the whole file), got {json.dumps(value)}")
    return None if value < 0 else float(value)
