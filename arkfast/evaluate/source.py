"""Rows to be scored, as a file has them: each with its place, and none twice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from arkfast.data.ids import UniqueIds
from arkfast.infer.jsonl import read_places
from arkfast.records import InputError, JsonObject


@dataclass(frozen=True, kw_only=True)
class Source:
    """The rows of a file in its order."""

    rows: list[JsonObject]
    """Without those that repeat an earlier one."""
    places: list[str]
    """What errors call each row: ``file:line``."""
    repeats: int
    """Rows that were left out because they repeat an earlier one in every field."""


def read_source(path: Path, *, allow_repeats: bool = False) -> Source:
    """The rows of a JSONL file, whose ids are unique; rows without an id are not compared with one another.

    Args:
        path: as ``read_places`` takes it.
        allow_repeats: take identical rows with one id once; otherwise a repeated id is an error.

    Raises:
        InputError: the file cannot be read, a line is no row, there is none, or an id stands there twice. The message names both lines.
    """
    rows, places = [], []
    with UniqueIds(allow_repeats=allow_repeats) as ids:
        for where, row in read_places(path):
            identity = row.get("id")
            named = isinstance(identity, (str, int)) and not isinstance(identity, bool)
            if named and not ids.keep(str(identity), where, row):
                continue
            rows.append(row)
            places.append(where)
        if not rows:
            raise InputError(f"{path}: holds no rows; expected one JSON object a line")
        return Source(rows=rows, places=places, repeats=ids.repeats)
