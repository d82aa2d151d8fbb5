"""JSON that a user gave, read so that nothing about it ends in another error than ``ValueError``.

Python's reader raises a ``RecursionError`` where lists are nested thousands deep, and what it still reads may be too deep for code that
walks over the value or writes it again. Neither is the work of anybody's data.
"""

from __future__ import annotations

import json

from arkfast.records import JsonObject

MOST_LEVELS = 100
"""Objects and lists within one another; rows have two or three."""


def parse_json(text: str | bytes) -> object:
    """The value that a JSON text spells.

    Args:
        text: the text, or its bytes in UTF-8.

    Raises:
        ValueError: it is no JSON (``json.JSONDecodeError``), no UTF-8, or nested more than ``MOST_LEVELS`` deep.
    """
    try:
        value: object = json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError:
        raise _too_deep() from None
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [inner for outer in level for inner in _inside(outer) if isinstance(inner, (dict, list))]
        if not level:
            return value
    raise _too_deep()


def parse_json_object(text: str | bytes) -> JsonObject:
    """The object that a JSON text spells.

    Raises:
        ValueError: as ``parse_json``, or it spells something else.
    """
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {type(value).__name__}")
    return value


def _inside(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _too_deep() -> ValueError:
    return ValueError(f"objects and lists nested more than {MOST_LEVELS} deep")
