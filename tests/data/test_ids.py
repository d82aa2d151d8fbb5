"""Repeated ids: refused with both places, or identical rows taken once."""

from __future__ import annotations

import pytest

from arkfast.data.ids import UniqueIds
from arkfast.records import InputError


@pytest.mark.parametrize("identity", ["one", "", "你好", "half \ud800", "nul \0"])
def test_a_repeated_id_is_an_error_that_names_both_lines(identity: str) -> None:
    with UniqueIds() as ids:
        assert ids.keep(identity, "a.jsonl:1", {"text": "x"})
        assert ids.keep(identity + "2", "a.jsonl:2", {"text": "x"})
        with pytest.raises(InputError) as caught:
            ids.keep(identity, "a.jsonl:7", {"text": "x"})
    assert str(caught.value).startswith(f"a.jsonl:7: id '{identity}' stands already at a.jsonl:1; ids must be unique")
    assert "--allow_repeats" in str(caught.value)


def test_identical_rows_are_taken_once_where_that_is_asked_for() -> None:
    with UniqueIds(allow_repeats=True) as ids:
        assert ids.keep("one", "a.jsonl:1", {"text": "x", "end": 1.0})
        assert not ids.keep("one", "a.jsonl:2", {"end": 1.0, "text": "x"})
        assert ids.keep("two", "a.jsonl:3", "raw line")
        assert not ids.keep("two", "a.jsonl:4", "raw line")
        assert ids.repeats == 2
        for other in ({"text": "y", "end": 1.0}, {"text": "x"}, {"text": "x", "end": 1.0, "more": None}, "x"):
            with pytest.raises(InputError, match=r"a\.jsonl:5: id 'one' stands already at a\.jsonl:1 with other fields"):
                ids.keep("one", "a.jsonl:5", other)
