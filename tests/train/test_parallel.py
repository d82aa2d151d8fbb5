"""Processes find each other, whatever an earlier start left behind."""

import threading

import pytest
import torch.distributed as dist

from arkfast.records import InputError
from arkfast.train.parallel import Parallel, this_start


def meet(store, world, late=0.0):
    """The names that the ranks of one start come to."""
    names = {}

    def join(rank):
        names[rank] = this_start(store, rank, world)

    threads = [threading.Thread(target=join, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(names) == world, "a rank waits still"
    return names


def test_every_start_of_a_run_has_a_name_of_its_own():
    store = dist.HashStore()
    first, second, fewer = meet(store, 4), meet(store, 4), meet(store, 2)
    for names in (first, second, fewer):
        assert len(set(names.values())) == 1
    assert len({first[0], second[0], fewer[0]}) == 3


def test_the_sign_of_a_dead_process_is_not_mistaken_for_one_of_this_start():
    store = dist.HashStore()
    store.set("arkfast/sign/1", "left by a process that died before it got its name")
    names = meet(store, 3)
    assert len(set(names.values())) == 1


def test_one_process_is_its_own_world():
    alone = Parallel("cpu", environment={})
    assert (alone.rank, alone.world, alone.is_first, alone.restarts) == (0, 1, True, 0)
    assert alone.gather("x") == ["x"]
    assert alone.broadcast("x") == "x"
    with pytest.raises(InputError, match="wrong"), alone.agreeing():
        raise InputError("wrong")
    with alone.agreeing():
        pass
    alone.close()
