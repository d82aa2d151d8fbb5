"""Counts by hand, against a dynamic programme written from the definition, and the bootstrap against what it estimates."""

import math

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arkfast.metrics import ErrorCounts, Unit, bootstrap_difference, char_errors, count_errors, word_errors
from arkfast.records import InputError


def counts_of(errors: list[int], reference: list[int]) -> ErrorCounts:
    """Counts with the given errors, all of them substitutions as far as the reference goes and insertions beyond."""
    e, n = np.array(errors), np.array(reference)
    substitutions = np.minimum(e, n)
    return ErrorCounts(substitutions=substitutions, deletions=np.zeros_like(e), insertions=e - substitutions, hits=n - substitutions)


def distance(reference: list[str], hypothesis: list[str]) -> int:
    """Levenshtein distance by its recurrence."""
    row = list(range(len(hypothesis) + 1))
    for i, r in enumerate(reference, start=1):
        previous, row[0] = row[0], i
        for j, h in enumerate(hypothesis, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (r != h))
    return row[-1]


def test_each_kind_of_error_by_hand() -> None:
    counts = word_errors(
        ["the cat sat", "the cat sat", "the cat sat", "the cat sat"], ["the cat sat", "the dog sat", "the sat", "the big cat sat"]
    )
    assert counts.substitutions.tolist() == [0, 1, 0, 0]
    assert counts.deletions.tolist() == [0, 0, 1, 0]
    assert counts.insertions.tolist() == [0, 0, 0, 1]
    assert counts.hits.tolist() == [3, 2, 2, 3]
    assert counts.reference.tolist() == [3, 3, 3, 3]
    assert counts.rate() == 3 / 12


def test_empty_texts_count_as_what_they_are() -> None:
    counts = word_errors(["", "", "a b"], ["x y", "", ""])
    assert counts.insertions.tolist() == [2, 0, 0]
    assert counts.deletions.tolist() == [0, 0, 2]
    assert counts.rate() == 2.0  # four errors over two reference words
    assert math.isnan(word_errors([""], ["x"]).rate())
    assert math.isnan(word_errors([], []).rate())
    assert len(word_errors([], [])) == 0


def test_characters_leave_spaces_out() -> None:
    assert char_errors(["hello world"], ["helloworld"]).errors.tolist() == [0]
    counts = char_errors(["你好 世界", "ab c"], ["你号世界", "abd"])
    assert counts.errors.tolist() == [1, 1]
    assert counts.reference.tolist() == [4, 3]


def test_mixed_units_are_characters_of_unspaced_scripts_and_words_elsewhere() -> None:
    # 我 用 iphone 15 打 电 话 against 我 用 iphone 14 打 电 话 吧: one substitution of seven, one insertion
    counts = count_errors(["我用 iphone 15 打电话"], ["我用iphone 14打电话 吧"], unit="mixed")
    assert counts.substitutions.tolist() == [1]
    assert counts.insertions.tolist() == [1]
    assert counts.hits.tolist() == [6]
    assert char_errors(["我用 iphone 15 打电话"], ["我用iphone 14打电话吧"]).reference.tolist() == [2 + 6 + 2 + 3]


@pytest.mark.parametrize("unit", ["word", "char", "mixed"])
def test_counts_equal_jiwers_on_a_thousand_random_pairs(unit: Unit) -> None:
    rng = np.random.default_rng(11)
    alphabet = ["a", "b", "ab", "don't", "3.5", "你", "好", "カ", "é", "한국"]
    texts = [" ".join(rng.choice(alphabet, size=rng.integers(0, 9))) for _ in range(2000)]
    references, hypotheses = texts[:1000], texts[1000:]
    counts = count_errors(references, hypotheses, unit=unit)
    for i, (reference, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        if unit == "char":
            found = jiwer.process_characters(reference.replace(" ", ""), hypothesis.replace(" ", ""))
        else:  # every unspaced character of the alphabet is a word of its own
            found = jiwer.process_words(reference, hypothesis)
        ours = [int(part[i]) for part in (counts.substitutions, counts.deletions, counts.insertions, counts.hits)]
        assert ours == [found.substitutions, found.deletions, found.insertions, found.hits], (reference, hypothesis)


def test_long_lists_are_aligned_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    references, hypotheses = ["a b", "c", "", "d e f", "g"], ["a", "c d", "x", "f e d", "g"]
    whole = word_errors(references, hypotheses)
    monkeypatch.setattr("arkfast.metrics.errors._PAIRS", 2)
    parts = word_errors(references, hypotheses)
    assert parts.errors.tolist() == whole.errors.tolist() == [1, 1, 1, 2, 0]
    assert parts.hits.tolist() == whole.hits.tolist()


def test_sums_by_key_keep_the_keys_order() -> None:
    counts = word_errors(["a b", "c", "d e", "f"], ["a x", "", "d e", "f g"]).by(["s2", "s1", "s2", "s1"])
    assert counts.errors.tolist() == [1, 2]
    assert counts.reference.tolist() == [4, 2]
    assert counts.insertions.tolist() == [0, 1]
    with pytest.raises(ValueError, match="got 1 for 2"):
        counts.by(["a"])


def test_any_whitespace_separates_words() -> None:
    assert word_errors(["a\tb\n c"], [" a b c "]).errors.tolist() == [0]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.text("ab c", max_size=12), st.text("ab c", max_size=12)), max_size=5))
def test_counts_are_minimal_and_consistent(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = [r for r, _ in pairs], [h for _, h in pairs]
    for unit, split in (("word", str.split), ("char", lambda text: list("".join(text.split())))):
        counts = count_errors(references, hypotheses, unit=unit)
        assert counts.errors.tolist() == [distance(split(r), split(h)) for r, h in pairs]
        assert counts.reference.tolist() == [len(split(r)) for r in references]
        assert (counts.hits + counts.substitutions + counts.insertions).tolist() == [len(split(h)) for h in hypotheses]


def test_counts_of_a_list_are_the_counts_of_its_items_and_can_be_sliced() -> None:
    references, hypotheses = ["a b", "c", "d e f"], ["a", "c d", "f e d"]
    together = word_errors(references, hypotheses)
    alone = [int(word_errors([r], [h]).errors[0]) for r, h in zip(references, hypotheses, strict=True)]
    assert together.errors.tolist() == alone == [1, 1, 2]
    assert together[1:].errors.tolist() == alone[1:]
    assert together[together.errors == 2].reference.tolist() == [3]


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="got 1 for 2"):
        word_errors(["a", "b"], ["a"])
    with pytest.raises(InputError, match="unknown unit 'words'"):
        count_errors(["a"], ["a"], unit="words")
    with pytest.raises(ValueError, match="confidence"):
        word_errors(["a"], ["a"]).bootstrap(confidence=95)
    with pytest.raises(ValueError, match="resamples"):
        word_errors(["a"], ["a"]).bootstrap(resamples=0)


def test_bootstrap_agrees_with_the_binomial_it_resamples() -> None:
    # one-word utterances: a resampled rate is Binomial(n, p) / n, so the interval's ends lie 1.96 standard errors from p. The ends of
    # 10 000 resamples are known to about 0.03 standard errors, the lattice of k / n adds half of 1 / n = 0.05, skewness about 0.03.
    n, wrong = 2000, 400
    counts = counts_of([1] * wrong + [0] * (n - wrong), [1] * n)
    p = wrong / n
    error = math.sqrt(p * (1 - p) / n)
    low, high = counts.bootstrap()
    assert low == pytest.approx(p - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(p + 1.96 * error, abs=0.15 * error)
    inner_low, inner_high = counts.bootstrap(confidence=0.5)
    assert low < inner_low < p < inner_high < high


def test_bootstrap_weighs_utterances_by_their_length() -> None:
    # the delta method for a ratio of means: var(rate) = mean((errors - rate · reference)²) / (n · mean(reference)²)
    rng = np.random.default_rng(3)
    reference = rng.integers(5, 30, size=3000)
    errors = rng.binomial(reference, 0.1)
    counts = counts_of(errors.tolist(), reference.tolist())
    rate = counts.rate()
    error = math.sqrt(np.mean((errors - rate * reference) ** 2) / len(reference)) / reference.mean()
    low, high = counts.bootstrap()
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.05)  # Monte Carlo noise of the two ends is about 2 %


def test_bootstrap_lies_within_two_percent_of_one_written_plainly() -> None:
    """10 000 corpora of 300 utterances, drawn index by index with another generator."""
    rng = np.random.default_rng(5)
    reference = rng.integers(3, 25, size=300)
    errors = rng.binomial(reference, 0.12)
    rates = []
    for _ in range(10_000):
        drawn = rng.integers(0, 300, size=300)
        rates.append(errors[drawn].sum() / reference[drawn].sum())
    low, high = counts_of(errors.tolist(), reference.tolist()).bootstrap()
    assert low == pytest.approx(np.percentile(rates, 2.5), rel=0.02)
    assert high == pytest.approx(np.percentile(rates, 97.5), rel=0.02)


def test_utterances_of_one_speaker_are_not_independent() -> None:
    """Ten speakers, each always right or always wrong: resampled by speaker the rate is known far less well."""
    errors, keys = [i % 2 for i in range(10) for _ in range(50)], [i for i in range(10) for _ in range(50)]
    counts = counts_of(errors, [1] * 500)
    low, high = counts.bootstrap()
    wide_low, wide_high = counts.by(keys).bootstrap()
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 500), rel=0.1)
    assert (wide_low, wide_high) == pytest.approx((0.2, 0.8))  # Binomial(10, 1/2) / 10: 2.1 % lie below 0.2 and above 0.8


def test_bootstrap_is_deterministic_and_ignores_the_order() -> None:
    errors, reference = [0, 1, 5, 2, 0, 0, 3], [10, 8, 12, 0, 5, 7, 9]
    counts = counts_of(errors, reference)
    assert counts.bootstrap() == counts.bootstrap() == counts_of(errors[::-1], reference[::-1]).bootstrap()
    assert counts.bootstrap(seed=1) != counts.bootstrap(seed=2)


def test_bootstrap_does_not_depend_on_the_size_of_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = counts_of([0, 1, 5, 2], [10, 8, 12, 6])
    whole = counts.bootstrap(resamples=1001)
    monkeypatch.setattr("arkfast.metrics.resampling._CELLS", 7)
    assert counts.bootstrap(resamples=1001) == whole


def test_bootstrap_of_degenerate_counts() -> None:
    assert all(math.isnan(x) for x in word_errors([], []).bootstrap())
    assert all(math.isnan(x) for x in word_errors([""], ["x"]).bootstrap())
    assert word_errors(["a b"], ["a b"]).bootstrap() == (0.0, 0.0)
    assert word_errors(["a b", ""], ["a", ""]).bootstrap() == (0.5, 0.5)  # corpora of empty references alone are left out


def test_paired_difference_sees_what_unpaired_intervals_hide():
    """One word fewer wrong in every third utterance, under a noise that both systems share."""
    rng = np.random.default_rng(0)
    shared = rng.integers(0, 6, 300)
    zeros = np.zeros(300, dtype=np.int64)

    def counts(errors):
        return ErrorCounts(substitutions=errors, deletions=zeros, insertions=zeros, hits=10 - errors)

    worse = counts(shared + (np.arange(300) % 3 == 0))
    better = counts(shared)
    value, low, high = bootstrap_difference(better, worse)
    assert value == pytest.approx(-100 / 3000)
    assert low < value < high < 0
    assert better.bootstrap()[1] > worse.bootstrap()[0], "the two intervals overlap"
    assert bootstrap_difference(better, worse) == (value, low, high)
    assert bootstrap_difference(better, better) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="same references"):
        bootstrap_difference(better, worse[:10])
