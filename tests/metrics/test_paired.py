"""The paired test: it finds a difference that is there, and none between equal systems."""

import itertools

import numpy as np
import pytest

from arkfast.metrics import ErrorCounts, paired_test, unpaired_difference


def counts_of(errors: np.ndarray, reference: np.ndarray) -> ErrorCounts:
    zeros = np.zeros_like(errors)
    return ErrorCounts(substitutions=errors, deletions=zeros, insertions=zeros, hits=reference - errors)


def test_a_known_difference_is_found() -> None:
    rng = np.random.default_rng(0)
    reference = np.full(400, 10)
    shared = rng.integers(0, 5, size=400)
    worse = shared + (rng.random(400) < 0.2)
    found = paired_test(counts_of(worse, reference), counts_of(shared, reference))
    assert found.value == pytest.approx((worse - shared).sum() / 4000)
    assert 0 < found.low < found.value < found.high
    assert found.p_value is not None
    assert found.p_value < 0.001
    turned = paired_test(counts_of(shared, reference), counts_of(worse, reference))
    assert turned.value == -found.value
    assert turned.p_value == found.p_value


def test_equal_systems_do_not_differ() -> None:
    errors, reference = np.array([0, 1, 3, 0, 2]), np.array([5, 6, 7, 8, 9])
    same = paired_test(counts_of(errors, reference), counts_of(errors, reference))
    assert (same.value, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_systems_of_equal_strength_are_seldom_called_different() -> None:
    """Two systems drawn from one law, 200 times: p below 0.05 in about 5 % of them (within three standard errors), so p is calibrated."""
    rng = np.random.default_rng(2)
    reference = np.full(120, 12)
    found = 0
    for seed in range(200):
        one, two = rng.binomial(12, 0.1, size=(2, 120))
        p = paired_test(counts_of(one, reference), counts_of(two, reference), resamples=500, seed=seed).p_value
        found += p is not None and p < 0.05
    assert found <= 200 * 0.05 + 3 * (200 * 0.05 * 0.95) ** 0.5


def test_the_p_value_is_that_of_all_exchanges() -> None:
    """Seven utterances have 128 exchanges: all of them, counted one by one."""
    first, second = np.array([3, 0, 2, 5, 1, 4, 0]), np.array([1, 1, 0, 2, 1, 1, 0])
    differences = (first - second).tolist()
    sums = [abs(sum(sign * d for sign, d in zip(signs, differences, strict=True))) for signs in itertools.product((-1, 1), repeat=7)]
    exact = sum(total >= abs(sum(differences)) for total in sums) / len(sums)
    p = paired_test(counts_of(first, np.full(7, 9)), counts_of(second, np.full(7, 9)), resamples=20_000).p_value
    assert p == pytest.approx(exact, abs=3 * (exact * (1 - exact) / 20_000) ** 0.5)


def test_without_pairs_the_interval_is_wider_and_there_is_no_p_value() -> None:
    rng = np.random.default_rng(4)
    reference, shared = np.full(300, 10), rng.integers(0, 6, 300)
    worse, better = counts_of(shared + (np.arange(300) % 3 == 0), reference), counts_of(shared, reference)
    paired, unpaired = paired_test(worse, better), unpaired_difference(worse.grouped(), better.grouped())
    assert unpaired.value == pytest.approx(paired.value)
    assert unpaired.high - unpaired.low > 3 * (paired.high - paired.low)
    assert unpaired.p_value is None
    # two independent corpora: the variances add up
    (low, high), (other_low, other_high) = worse.bootstrap(), better.bootstrap()
    expected = ((high - low) ** 2 + (other_high - other_low) ** 2) ** 0.5
    assert unpaired.high - unpaired.low == pytest.approx(expected, rel=0.05)
    with pytest.raises(ValueError, match="no units"):
        unpaired_difference(worse[:0].grouped(), better.grouped())
