"""The data order and its batches are a function of (seed, epoch, cursor); the loader keeps them, whatever rows turn out bad."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arkfast.audio import LogMel
from arkfast.data import DataOrder, Loader
from arkfast.data.loader import planned_seconds
from arkfast.data.pipeline import FeaturePipeline
from arkfast.records import InputError, Utterance

SECONDS = np.random.default_rng(0).uniform(1, 30, 103)


def order(seed=0, **kwargs):
    return DataOrder(SECONDS, batch_size=8, seed=seed, **kwargs)


def test_each_epoch_is_a_permutation_and_epochs_differ():
    epochs = [order().rows(103 * e, 103) for e in range(3)]
    assert all(sorted(rows) == list(range(103)) for rows in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order(seed=1).rows(0, 103) != epochs[0]


def test_position_alone_decides():
    """A run that starts at any cursor sees what one from the start sees there, across the epoch's end too."""
    whole = order().rows(0, 250)
    for cursor, count in ((0, 8), (96, 16), (101, 4), (205, 3)):
        assert order().rows(cursor, count) == whole[cursor : cursor + count]


def test_neighbours_have_similar_lengths():
    rows = order().rows(0, 96)
    spread = [np.ptp(SECONDS[rows[i : i + 8]]) for i in range(0, 96, 8)]
    assert np.mean(spread) < 0.25 * np.mean([np.ptp(SECONDS[i : i + 8]) for i in range(0, 96, 8)])


def test_without_shuffling_the_manifests_order_stays():
    assert order(shuffle=False).rows(100, 6) == [100, 101, 102, 0, 1, 2]


def test_fixed_batches_have_their_size_across_epochs():
    assert order().batch(101) == order().rows(101, 8)
    assert order().batch_count(1) == 13
    assert order().batch_count(8) == 103
    assert order().typical_rows == 8


def walk(plan, epochs=2):
    """The batches of the first epochs."""
    cursor, found = 0, []
    while cursor < epochs * len(plan):
        found.append(plan.batch(cursor))
        cursor += len(found[-1])
    assert cursor == epochs * len(plan), "a budget's batch ends with its epoch"
    return found


@settings(max_examples=60, deadline=None)
@given(
    seconds=st.lists(st.floats(0.1, 40), min_size=1, max_size=60),
    size=st.integers(1, 9),
    budget=st.floats(0.5, 100),
    shuffle=st.booleans(),
    seed=st.integers(0, 3),
)
def test_a_budget_is_kept_and_no_row_is_lost(seconds, size, budget, shuffle, seed):
    def plan():
        return DataOrder(seconds, batch_size=size, seed=seed, shuffle=shuffle, batch_seconds=budget)

    found = walk(plan())
    assert len(found) == plan().batch_count(2)
    for batch in found:
        assert 1 <= len(batch) <= size
        assert len(batch) == 1 or len(batch) * max(seconds[i] for i in batch) <= budget
    for epoch in range(2):
        rows = [i for batch in found for i in batch][epoch * len(seconds) : (epoch + 1) * len(seconds)]
        assert sorted(rows) == list(range(len(seconds)))
    assert plan().rows(0, 2 * len(seconds)) == [i for batch in found for i in batch]
    # Any batch is the same when a fresh process asks for it first, and from inside a batch the rest of it comes.
    starts = np.cumsum([0, *map(len, found)])
    for batch, start in list(zip(found, starts, strict=False))[:: max(1, len(found) // 4)]:
        assert plan().batch(int(start)) == batch
        assert plan().batch(int(start) + len(batch) - 1) == batch[-1:]


def test_a_budget_fills_its_batches():
    """Little of a budget stays unused when rows are many and short, and a shuffled epoch is not sorted."""
    found = walk(DataOrder(SECONDS, batch_size=64, seed=0, batch_seconds=120), epochs=1)
    padded = [len(batch) * max(SECONDS[i] for i in batch) for batch in found]
    assert sum(SECONDS) / sum(padded) > 0.85, "padding"
    assert np.mean(padded) > 0.75 * 120
    longest = [max(SECONDS[i] for i in batch) for batch in found]
    assert sorted(longest) != longest


def test_no_rows_and_no_size_are_errors():
    with pytest.raises(ValueError, match="no rows"):
        DataOrder([], batch_size=1, seed=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        DataOrder([1.0], batch_size=0, seed=0)
    with pytest.raises(ValueError, match="batch_seconds must be above 0"):
        DataOrder([1.0], batch_size=1, seed=0, batch_seconds=0)
    with pytest.raises(ValueError, match="the order counts 103 rows, there are 1"):
        loader([Utterance(id="a", audio=np.zeros(800, dtype=np.float32))], order())


def rows(count, bad=()):
    """Clips of i + 1 frames; a bad one holds NaN."""
    clips = [np.full(400 + 160 * i, np.nan if i in bad else 0.1, dtype=np.float32) for i in range(count)]
    return [Utterance(id=str(i), audio=clip) for i, clip in enumerate(clips)]


def ids(items):
    return [int(item.utterance.id) for item in items]


def loader(utterances, plan, *, make=ids, log_mel=None, on_bad_audio="fail", cache_mb=0, workers=0):
    pipeline = FeaturePipeline(log_mel or LogMel(8), workers=workers, prefetch=4, max_seconds=2.0, on_bad_audio=on_bad_audio)
    return Loader(plan, utterances, pipeline, make, cache_mb=cache_mb)


def take(found, count):
    batches = [next(found) for _ in range(count)]
    found.close()
    return batches


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_loader_keeps_the_order(workers):
    got = take(loader(rows(103), order(), workers=workers).batches(16), 14)
    assert [batch for batch, _ in got] == [order().rows(16 + 8 * i, 8) for i in range(14)]
    assert [cursor for _, cursor in got] == [24 + 8 * i for i in range(14)]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_raises_an_error_in_its_turn(workers):
    def make(items):
        if 5 in ids(items):
            raise ValueError("row 5")
        return ids(items)

    plan = DataOrder([1.0] * 10, batch_size=2, seed=0, shuffle=False)
    batches = loader(rows(10), plan, make=make, workers=workers).batches(0)
    assert [next(batches)[0], next(batches)[0]] == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="row 5"):
        next(batches)
    batches = loader(rows(10, bad={3}), plan, workers=workers).batches(0)
    assert next(batches)[0] == [0, 1]
    with pytest.raises(InputError, match=r"sample 0 .* is nan"):
        next(batches)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("budget", [None, 3.0])
def test_skipped_rows_leave_the_other_batches_as_they_were(workers, budget):
    bad, utterances = {3, 4, 5, 17}, rows(40, bad={3, 4, 5, 17})
    plan = DataOrder(planned_seconds(utterances), batch_size=3, seed=1, batch_seconds=budget)
    whole = take(loader(rows(40), plan).batches(0), 40)
    expected = [(left, cursor) for batch, cursor in whole if (left := [i for i in batch if i not in bad])]
    got = take(loader(utterances, plan, on_bad_audio="skip:1", workers=workers).batches(0), len(expected))
    assert got == expected
    for start in (0, 4, 11):
        resumed = take(loader(utterances, plan, on_bad_audio="skip:1", workers=workers if start == 4 else 0).batches(got[start][1]), 5)
        assert resumed == got[start + 1 : start + 6]


def test_a_batch_without_usable_rows_is_left_out_and_an_epoch_of_them_is_an_error():
    plan = DataOrder([1.0] * 6, batch_size=2, seed=0, shuffle=False)
    found = take(loader(rows(6, bad={2, 3}), plan, on_bad_audio="skip:1").batches(0), 3)
    assert found == [([0, 1], 2), ([4, 5], 6), ([0, 1], 8)]
    with pytest.raises(InputError, match="none of the 6 rows has usable audio"):
        next(loader(rows(6, bad=range(6)), plan, on_bad_audio="skip:1").batches(0))


class Counting(LogMel):
    """Counts the clips that it is asked for."""

    calls = 0

    def __call__(self, waveforms, **options):
        type(self).calls += 1
        return super().__call__(waveforms, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_seen_before_come_from_memory(workers, monkeypatch):
    monkeypatch.setattr(Counting, "calls", 0)
    plan = DataOrder([1.0] * 12, batch_size=3, seed=0)
    features = [take(loader(rows(12), plan, make=list, cache_mb=mb, workers=workers, log_mel=Counting(8)).batches(0), 12) for mb in (0, 1)]
    for plain, kept in zip(*features, strict=True):
        for a, b in zip(plain[0], kept[0], strict=True):
            assert a.utterance.id == b.utterance.id
            assert np.array_equal(a.features, b.features)
    seen: dict[str, np.ndarray] = {}
    for item in (item for batch, _ in features[1] for item in batch):
        assert seen.setdefault(item.utterance.id, item.features) is item.features, "the array itself, not a second extraction of it"
    assert Counting.calls == (0 if workers else 12 * 3 + 12), "three epochs without memory, one with it; workers count in their own process"


def test_a_header_that_cannot_be_read_counts_as_given():
    utterances = [Utterance(id="a", audio="absent.wav", extra={"duration": 2.5}), Utterance(id="b", audio="absent.wav")]
    assert planned_seconds(utterances, unreadable=30.0) == [2.5, 30.0]
    with pytest.raises(InputError, match=r"absent\.wav: no such file"):
        planned_seconds(utterances)


def test_a_length_that_is_no_number_of_seconds_plans_nothing():
    samples = np.zeros(8000, dtype=np.float32)
    rows = [
        Utterance(id=str(i), audio=samples, extra={"duration": value}) for i, value in enumerate((math.inf, math.nan, True, -1, "9", 2))
    ]
    assert planned_seconds(rows) == [0.5] * 5 + [2.0]
