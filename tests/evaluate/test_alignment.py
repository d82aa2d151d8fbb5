"""The alignment that pages show: nothing lost, as few errors as the scores count."""

from __future__ import annotations

import numpy as np
import pytest

from arkfast.evaluate import alignment
from arkfast.evaluate.alignment import Pair, align
from arkfast.metrics import count_errors


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


def test_errors_are_as_few_as_the_scores_count() -> None:
    generator = np.random.default_rng(0)
    texts = [[" ".join(generator.choice(list("abcd"), size=generator.integers(0, 15))) for _ in range(300)] for _ in range(2)]
    counted = count_errors(*texts, unit="word").errors
    for reference, hypothesis, errors in zip(*texts, counted, strict=True):
        pairs = align(reference.split(), hypothesis.split())
        assert sum(not pair.right for pair in pairs) == errors
        assert sides(pairs) == (reference.split(), hypothesis.split())


def test_what_is_too_long_to_be_exact_still_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    reference, hypothesis = ([str(x) for x in generator.integers(0, 30, size=size)] for size in (400, 350))
    exact = sum(not pair.right for pair in align(reference, hypothesis))
    monkeypatch.setattr(alignment, "MOST_CELLS", 100)
    pairs = align(reference, hypothesis)
    assert sides(pairs) == (reference, hypothesis)
    assert exact <= sum(not pair.right for pair in pairs)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors"),
    [("a b c", "a b c", 0), ("a b c", "a x c", 1), ("a b c", "a c", 1), ("a c", "a b c", 1), ("a b", "", 2), ("", "a", 1), ("", "", 0)],
)
def test_words_have_the_fewest_errors_and_none_is_lost(reference: str, hypothesis: str, errors: int) -> None:
    words = align(reference.split(), hypothesis.split())
    assert sum(not word.right for word in words) == errors
    assert [word.reference for word in words if word.reference is not None] == reference.split()
    assert [word.hypothesis for word in words if word.hypothesis is not None] == hypothesis.split()


def test_words_count_as_jiwers_do() -> None:
    jiwer = pytest.importorskip("jiwer", reason="the alignment is compared with jiwer's")
    generator = np.random.default_rng(0)
    for _ in range(50):
        reference, hypothesis = (" ".join(generator.choice(list("abc"), size=generator.integers(1, 12))) for _ in range(2))
        counted = jiwer.process_words(reference, hypothesis)
        errors = counted.substitutions + counted.deletions + counted.insertions
        assert sum(not word.right for word in align(reference.split(), hypothesis.split())) == errors
