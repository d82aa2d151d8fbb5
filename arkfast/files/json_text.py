"""JSON as the standard has it, for every file that is written.

Python writes infinities and NaN under names that no JSON knows (``Infinity``, ``NaN``), and other readers refuse the whole file. They
become null, which says that there is no such figure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping


def json_text(value: object, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """A value as strict JSON, without a line feed at its end.

    Args:
        value: dictionaries, lists, tuples, texts, numbers, booleans and None. Numbers that are not finite are written as null.
        indent: blanks for each level; None writes one line.
        ascii_only: escape whatever is not ASCII.
    """
    try:
        return json.dumps(value, indent=indent, ensure_ascii=ascii_only, allow_nan=False)
    except ValueError:
        return json.dumps(finite(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False)


def json_line(row: Mapping[str, object]) -> bytes:
    """A row of a JSONL file, with its line feed, as ``json_text`` writes it.

    Texts stand as they are, save in rows with half of a surrogate pair, which UTF-8 cannot spell.
    """
    try:
        return (json_text(row) + "\n").encode("utf-8")
    except UnicodeEncodeError:
        return (json_text(row, ascii_only=True) + "\n").encode("utf-8")


def finite(value: object) -> object:
    """The value with None in the place of every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {(str(finite(key)) if isinstance(key, float) else key): finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return value


def is_finite(value: object) -> bool:
    """Whether no number in the value is infinite or NaN."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(is_finite(inner) for inner in value.values())
    return all(is_finite(inner) for inner in value) if isinstance(value, (list, tuple)) else True
