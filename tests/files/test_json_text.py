"""JSON that every reader takes."""

from __future__ import annotations

import json
import math

import pytest

from arkfast.files import json_line, json_text


def strict(text: str | bytes) -> object:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


ODD = {"a": math.inf, "b": [math.nan, {"c": (-math.inf, 1.5)}], "d": "NaN", "e": True, "f": None, math.inf: 1, 2: 3, "g": 10**400}


@pytest.mark.parametrize("indent", [None, 2])
def test_numbers_that_are_not_finite_are_null(indent: int | None) -> None:
    expected = {"a": None, "b": [None, {"c": [None, 1.5]}], "d": "NaN", "e": True, "f": None, "None": 1, "2": 3, "g": 10**400}
    assert strict(json_text(ODD, indent=indent)) == expected
    assert strict(json_line(ODD)) == expected


def test_texts_stand_as_they_are_save_half_a_pair() -> None:
    assert json_line({"text": "你好", "n": 1.0}) == '{"text": "你好", "n": 1.0}\n'.encode()
    assert json_line({"text": "你\ud800", "n": math.nan}) == b'{"text": "\\u4f60\\ud800", "n": null}\n'
    assert "\n" not in json_text({"a": [1, 2]})
