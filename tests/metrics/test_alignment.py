"""The alignment that pages show: nothing lost, and the errors that the scores count."""

from __future__ import annotations

import numpy as np
import pytest

from arkfast.metrics import Pair, align, count_errors, tokenize


def sides(pairs: list[Pair]) -> tuple[list[str], list[str]]:
    return [p.reference for p in pairs if p.reference is not None], [p.hypothesis for p in pairs if p.hypothesis is not None]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("a b c", "a b c", [("a", "a"), ("b", "b"), ("c", "c")]),
        ("a b c", "a x c", [("a", "a"), ("b", "x"), ("c", "c")]),
        ("a b c", "a c", [("a", "a"), ("b", None), ("c", "c")]),
        ("a c", "a b c", [("a", "a"), (None, "b"), ("c", "c")]),
        ("a a a", "a a", [("a", "a"), ("a", "a"), ("a", None)]),
        ("", "a b", [(None, "a"), (None, "b")]),
        ("a b", "", [("a", None), ("b", None)]),
        ("", "", []),
    ],
)
def test_hand_checked(reference: str, hypothesis: str, expected: list[tuple[str | None, str | None]]) -> None:
    assert align(reference.split(), hypothesis.split()) == expected


@pytest.mark.parametrize("unit", ["word", "char"])
def test_every_kind_of_error_is_as_often_as_the_scores_count(unit: str) -> None:
    generator = np.random.default_rng(0)
    join = {"word": " ", "char": ""}[unit]
    texts = [[join.join(generator.choice(list("abcd"), size=generator.integers(0, 15))) for _ in range(300)] for _ in range(2)]
    counted = count_errors(*texts, unit=unit)
    for i, (reference, hypothesis) in enumerate(zip(*texts, strict=True)):
        units = tokenize(reference, unit), tokenize(hypothesis, unit)
        pairs = align(*units)
        assert sides(pairs) == units
        wrong = [pair for pair in pairs if not pair.right]
        assert sum(pair.hypothesis is None for pair in wrong) == counted.deletions[i]
        assert sum(pair.reference is None for pair in wrong) == counted.insertions[i]
        assert len(wrong) == counted.errors[i]


def test_an_hour_of_words_is_aligned_in_one_piece() -> None:
    generator = np.random.default_rng(1)
    reference, hypothesis = ([str(x) for x in generator.integers(0, 30, size=size)] for size in (9000, 8500))
    assert sides(align(reference, hypothesis)) == (reference, hypothesis)
