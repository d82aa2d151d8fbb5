"""What is taken out of decoded output, and what must stay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arkfast.data.transcript import clean_transcript


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("one two", "one two"),
        ("one two<|im_end|> three", "one two"),
        ("one<|user|>two<|im_end|>", "one"),
        ("one<|assistant|>two", "one"),
        ("<|zh|><|text|>one two<|im_end|>", "one two"),
        ("<|start_content|>one <|bicodec_semantic_12|>two", "one two"),
        ("  one \n\t two ", "one two"),
        (". one", "one"),
        ("?! ... one, two.", "one, two."),
        (", - one", "one"),
        (".NET is old", ".NET is old"),
        ("-5 degrees", "-5 degrees"),
        ("! -5 degrees", "-5 degrees"),
        ("...", ""),
        ("<|im_end|>", ""),
        ("", ""),
        ("a < b and c |> d", "a < b and c |> d"),
    ],
)
def test_transcripts(raw: str, clean: str) -> None:
    assert clean_transcript(raw) == clean


@given(st.lists(st.sampled_from([*"ab .,-!", "<|user|>", "<|text|>", "<|x|>"]), max_size=30))
def test_cleaning_again_changes_nothing(parts: list[str]) -> None:
    once = clean_transcript("".join(parts))
    assert once == " ".join(once.split())
    assert clean_transcript(once) == once
