"""The data order is a function of (seed, epoch, cursor); the loader keeps it with any number of threads."""

import numpy as np
import pytest

from arkfast.data import DataOrder, Loader

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


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="no rows"):
        DataOrder([], batch_size=1, seed=0)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_loader_keeps_the_order(workers):
    loader = Loader(order(), list, batch_size=8, workers=workers)
    batches = loader.batches(16)
    got = [next(batches) for _ in range(10)]
    batches.close()
    assert got == [order().rows(16 + 8 * i, 8) for i in range(10)]


def test_loader_raises_a_batchs_error_in_its_turn():
    def make(rows):
        if 3 in rows:
            raise ValueError("row 3")
        return rows

    loader = Loader(order(shuffle=False), make, batch_size=2, workers=2)
    batches = loader.batches(0)
    assert next(batches) == [0, 1]
    with pytest.raises(ValueError, match="row 3"):
        next(batches)
