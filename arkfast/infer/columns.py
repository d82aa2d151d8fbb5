"""Which type each field of transcribed rows has in a table, found from all of them.

Our own fields have one type in every table; those that stand only where they are asked for are found like the input's. The input's fields
have the type that all their values have: null beside anything is that thing, whole numbers beside fractions are fractions, and objects have
the fields of all of them. Values that share no type become their JSON text, whole, and so does what a table has no type for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from arkfast.files import json_text
from arkfast.infer.result import OUTPUT_FIELDS
from arkfast.records import JsonRow

if TYPE_CHECKING:
    import pyarrow

Name = Literal["null", "bool", "int", "float", "string", "list", "struct", "mixed"]
_EXACT = 1 << 53
"""Whole numbers up to here are exact as float64."""
_INT64 = 1 << 63
_MOST_FIELDS = 64  # of an object; one with more is taken for a dictionary, whose keys are no columns
RENAMED = "input_"
"""Put before the name of a field of the input that differs from another column in case alone, which many readers of tables do not tell
apart."""


@dataclass(frozen=True)
class Kind:
    """What values of a column are."""

    name: Name
    inside: Mapping[str, Kind] = field(default_factory=dict)
    """The fields of a struct; of a list its items, under the name of no text."""
    largest: int = 0
    """Of whole numbers, the largest without its sign."""


_NULL, _MIXED, _STRING, _FLOAT = Kind("null"), Kind("mixed"), Kind("string"), Kind("float")
_SEGMENT = Kind("struct", {"start": _FLOAT, "end": _FLOAT, "text": _STRING, "finish_reason": _STRING, "error": _STRING})
_TEXTS = (
    "audio", "text", "pred_text", "pred_text_raw", "id", "language", "detected_language", "status", "finish_reason", "error", "vad",
    "words_error",
)  # fmt: skip
_NUMBERS = (
    "begin_time", "end_time", "audio_seconds", "no_speech_prob", "avg_logprob", "compression_ratio", "repetition", "confidence",
)  # fmt: skip
_TYPES: dict[str, Kind] = {
    **dict.fromkeys(_TEXTS, _STRING),
    **dict.fromkeys(_NUMBERS, _FLOAT),
    "warnings": Kind("list", {"": _STRING}),
    "segments": Kind("list", {"": _SEGMENT}),
    "audio_used": _MIXED,
    "no_speech": Kind("bool"),
}
_OURS = {name: _TYPES[name] for name in OUTPUT_FIELDS if name in _TYPES}
"""Fields that every table has. The others of ours stand in rows where they were asked for, and are found there."""


def kind_of(value: object) -> Kind:
    """What a value of JSON is."""
    if value is None:
        return _NULL
    if isinstance(value, bool):
        return Kind("bool")
    if isinstance(value, int):
        return Kind("int", largest=abs(value)) if -_INT64 <= value < _INT64 else _MIXED
    if isinstance(value, float):
        return _FLOAT
    if isinstance(value, str):
        return _STRING
    if isinstance(value, list):
        items = _NULL
        for item in value:
            items = both(items, kind_of(item))
        return _MIXED if items.name == "mixed" else Kind("list", {"": items})
    if not isinstance(value, dict) or not 0 < len(value) <= _MOST_FIELDS:
        return _MIXED
    inside = {name: kind_of(inner) for name, inner in value.items()}
    return _MIXED if any(kind.name == "mixed" for kind in inside.values()) else Kind("struct", inside)


def both(one: Kind, other: Kind) -> Kind:
    """What values are of which some are one thing and some the other."""
    if one == other or other.name == "null":
        return one
    if one.name == "null":
        return other
    if {one.name, other.name} == {"int", "float"}:
        return _FLOAT if max(one.largest, other.largest) <= _EXACT else _MIXED
    if one.name != other.name or one.name == "mixed":
        return _MIXED
    if one.name == "int":
        return Kind("int", largest=max(one.largest, other.largest))
    names = dict.fromkeys([*one.inside, *other.inside])
    inside = {name: both(one.inside.get(name, _NULL), other.inside.get(name, _NULL)) for name in names}
    mixed = len(names) > _MOST_FIELDS or any(kind.name == "mixed" for kind in inside.values())
    return _MIXED if mixed else Kind(one.name, inside)


class Columns:
    """The columns of a table of transcribed rows, in the order in which their fields first stood there, ours before the input's.

    Args:
        rows: all rows of the table.

    Attributes:
        as_text: columns whose values are JSON text, since they share no type.
        renamed: the input's fields that stand under another name, with that name.
    """

    def __init__(self, rows: Iterable[JsonRow]) -> None:
        kinds = dict(_OURS)
        for row in rows:
            for name, value in row.items():
                kinds[name] = both(kinds.get(name, _NULL), kind_of(value))
        self._kinds = kinds
        self._names: dict[str, str] = {}
        taken: set[str] = set()
        for name in kinds:
            column = name
            while column.casefold() in taken:
                column = RENAMED + column
            taken.add(column.casefold())
            self._names[name] = column
        self.as_text = tuple(self._names[name] for name, kind in kinds.items() if kind == _MIXED and _OURS.get(name) != _MIXED)
        self.renamed = {name: column for name, column in self._names.items() if name != column}

    def schema(self) -> pyarrow.Schema:
        """The columns' types. What is JSON text has the field metadata ``arkfast: json``."""
        import pyarrow

        return pyarrow.schema(
            [
                pyarrow.field(self._names[name], _arrow(kind), metadata={"arkfast": "json"} if kind.name == "mixed" else None)
                for name, kind in self._kinds.items()
            ]
        )

    def row(self, row: JsonRow) -> dict[str, object]:
        """A row's values, by columns."""
        return {self._names[name]: _value(value, self._kinds[name]) for name, value in row.items()}


def _arrow(kind: Kind) -> pyarrow.DataType:
    import pyarrow

    if kind.name == "list":
        return pyarrow.list_(_arrow(kind.inside[""]))
    if kind.name == "struct":
        return pyarrow.struct([pyarrow.field(name, _arrow(inner)) for name, inner in kind.inside.items()])
    plain = {"bool": pyarrow.bool_(), "int": pyarrow.int64(), "float": pyarrow.float64()}
    return plain.get(kind.name, pyarrow.string())


def _value(value: object, kind: Kind) -> object:
    if value is None:
        return None
    if kind.name == "mixed":
        return _utf8(json_text(value))
    if isinstance(value, str):
        return _utf8(value)
    if isinstance(value, list):
        return [_value(item, kind.inside[""]) for item in value]
    if isinstance(value, dict):
        return {name: _value(inner, kind.inside[name]) for name, inner in value.items()}
    return float(value) if kind.name == "float" and isinstance(value, int) else value


def _utf8(text: str) -> str:
    """The text, with half of a surrogate pair, which UTF-8 cannot spell, as JSON escapes it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
