"""Batches are dealt to processes so that no row is lost or repeated, however many there are and whenever their number changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arkfast.audio import LogMel
from arkfast.data import DataOrder, Loader
from arkfast.data.dealer import Dealer
from arkfast.data.pipeline import FeaturePipeline
from arkfast.records import InputError, Utterance

SECONDS = np.random.default_rng(0).uniform(1, 30, 103)


def take(plan, batches, world, cursor=0, end=None, steps=None):
    """The rows of each window in the order dealt, put together from all ranks; and the cursor after them."""
    ranks = [Dealer(plan, batches=batches, rank=rank, world=world, end=end).windows(cursor) for rank in range(world)]
    found = []
    while steps is None or len(found) < steps:
        views = [next(rank, None) for rank in ranks]
        if views[0] is None:
            assert views == [None] * world
            break
        assert len({(view.rounds, view.batches, view.rows, view.cursor) for view in views}) == 1, "every rank sees the same window"
        assert all(len(view.share) <= view.rounds for view in views)
        shares = [iter(view.share) for view in views]
        dealt = [next(shares[j % world]) for j in range(views[0].batches)]
        assert all(next(share, None) is None for share in shares)
        assert sum(map(len, dealt)) == views[0].rows
        found.append(dealt)
        cursor = views[0].cursor
    return found, cursor


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 60),
    size=st.integers(1, 5),
    budget=st.sampled_from([None, 40.0, 90.0]),
    batches=st.integers(1, 7),
    worlds=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    halt=st.integers(0, 12),
)
def test_two_epochs_with_a_resume_on_another_world_have_every_row_twice(rows, size, budget, batches, worlds, halt):
    plan = DataOrder(SECONDS[:rows], batch_size=size, seed=1, batch_seconds=budget)
    end = 2 * rows
    whole, _ = take(plan, batches, 1, end=end)
    first, cursor = take(plan, batches, worlds[0], end=end, steps=halt)
    rest, last = take(plan, batches, worlds[1], cursor=cursor, end=end)
    assert first + rest == whole, "the window of a step does not depend on who shares it"
    assert last == end or not rest
    seen = [row for window in whole for batch in window for row in batch]
    assert sorted(seen[:rows]) == sorted(seen[rows:]) == list(range(rows))
    assert all(len(window) == batches for window in whole[:-1])


def test_without_an_end_windows_go_on():
    plan = DataOrder(SECONDS, batch_size=8, seed=0)
    found, cursor = take(plan, 4, 3, steps=10)
    assert cursor == 320
    assert [row for window in found for batch in window for row in batch] == plan.rows(0, 320)


@pytest.mark.parametrize(("options", "message"), [({"batches": 0}, "at least 1"), ({"batches": 1, "rank": 2, "world": 2}, "no rank 2")])
def test_what_cannot_be_dealt(options, message):
    with pytest.raises(ValueError, match=message):
        Dealer(DataOrder([1.0], batch_size=1, seed=0), **options)


def loader(utterances, rule):
    pipeline = FeaturePipeline(LogMel(8), max_seconds=2.0, on_bad_audio=rule)
    order = DataOrder([1.0] * len(utterances), batch_size=2, seed=0, shuffle=False)
    return Loader(order, utterances, pipeline, lambda items: [int(item.utterance.id) for item in items])


def clips(count, bad=()):
    return [Utterance(id=str(i), audio=np.full(800, np.nan if i in bad else 0.1, dtype=np.float32)) for i in range(count)]


def test_a_planned_batch_keeps_its_place_when_all_its_rows_are_bad():
    plan = [[0, 1], [2, 3], [4, 5]]
    assert list(loader(clips(6, bad={2, 3, 4}), "skip:1").planned(plan)) == [[0, 1], None, [5]]
    assert list(loader(clips(6), "fail").planned([])) == []
    with pytest.raises(InputError, match="none of the 6 rows has usable audio"):
        list(loader(clips(6, bad=range(6)), "skip:1").planned(plan))
