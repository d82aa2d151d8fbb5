"""How many rows are decoded at once where nobody says: from free memory, which is a stand-in here."""

from __future__ import annotations

import pytest
import torch
from engine_batches import ALLOWED, make_batch, requests, rows
from hypothesis import given
from hypothesis import strategies as st

from arkfast.engine import Engine, engine, memory
from arkfast.engine.graphs import BUCKETS
from arkfast.engine.memory import MOST_SLOTS, Footprint, default_slots, footprint, free_memory, slots_within
from arkfast.engine.slots import Slots
from arkfast.testing import tiny_model

GIB = 1 << 30
LARGE = Footprint(position=114_688, row=1_639_580, peak=3 * GIB)
"""The 0.6B checkpoint in bfloat16: 28 layers of 8 heads of 128, and its vocabulary."""


@pytest.fixture(scope="module")
def model():
    return tiny_model(seed=1)


def test_a_large_gpu_holds_256_rows_and_a_small_one_fewer() -> None:
    assert slots_within(130 * GIB, LARGE, length=768, most=256) == 256
    assert slots_within(12 * GIB, LARGE, length=768, most=256) == 64
    assert slots_within(3 * GIB, LARGE, length=768, most=256) == 1, "the engine says what is wrong when it finds no room for one"
    assert slots_within(0, LARGE, length=768, most=256) == 1


@given(
    st.integers(0, 200 * GIB), st.integers(0, 200 * GIB), st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 1000), st.booleans()
)
def test_more_memory_or_shorter_rows_never_mean_fewer_rows(a: int, b: int, long: int, short: int, most: int, small: bool) -> None:
    taken = LARGE._replace(peak=0) if small else LARGE
    (less, more), (short, long) = sorted((a, b)), sorted((short, long))
    found = slots_within(less, taken, length=long, most=most)
    assert 1 <= found <= slots_within(more, taken, length=long, most=most) <= most
    assert found <= slots_within(less, taken, length=short, most=most)
    assert found == most or found in BUCKETS or found % 64 == 0, "a captured step has one of these sizes"
    assert found == 1 or taken.peak + found * (taken.position * long + taken.row) <= less, "they fit"


def test_keys_and_values_of_a_position_are_what_the_cache_takes(model) -> None:
    slots = Slots(model, Engine(model, allowed=ALLOWED)._choosing, rows=3, length=40, new=8, graphs=False)
    assert slots.cache.bytes == footprint(model, torch.device("cpu")).position * 3 * 40


def test_a_cpu_decodes_40_rows_and_a_gpu_what_it_holds(model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_memory(torch.device("cpu")) is None
    assert default_slots(model, length=512) == MOST_SLOTS["cpu"] == 40
    monkeypatch.setitem(MOST_SLOTS, "cpu", 256)
    taken = footprint(model, torch.device("cpu"))
    monkeypatch.setattr(memory, "free_memory", lambda _: taken.peak + 20 * (512 * taken.position + taken.row))
    assert default_slots(model, length=512) == 16, "of which a fifth is left alone"
    monkeypatch.setattr(memory, "free_memory", lambda _: 1 << 50)
    assert default_slots(model, length=512) == 256


def test_free_memory_counts_what_pytorch_holds_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 20)
    assert free_memory(torch.device("cuda", 1)) == 130


@pytest.mark.parametrize(("asked", "at_once"), [(None, 2), (3, 3), (9, 5)])
def test_a_rollout_takes_what_fits_unless_a_number_is_given(
    model, monkeypatch: pytest.MonkeyPatch, asked: int | None, at_once: int
) -> None:
    batch = make_batch()
    want = rows(Engine(model, allowed=ALLOWED).rollout(batch, max_new_tokens=12))
    taken = footprint(model, torch.device("cpu"))
    made = Engine(model, allowed=ALLOWED, slots=asked)
    room = taken.peak + int(3.9 * (engine.LENGTHS * taken.position + taken.row))
    monkeypatch.setattr(engine, "free_memory", lambda _: room - (made._slots.cache.bytes if made._slots else 0))
    for _ in range(2):  # the second finds the slots of the first
        assert rows(made.rollout(batch, max_new_tokens=12)) == want
        assert made._slots is not None
        assert made._slots.most == at_once


@pytest.mark.parametrize(("asked", "at_once"), [(None, 2), (4, 4)])
def test_requests_take_what_fits_unless_a_number_is_given(model, monkeypatch: pytest.MonkeyPatch, asked: int | None, at_once: int) -> None:
    monkeypatch.setattr(engine, "default_slots", lambda model, length: 2)
    made = Engine(model, allowed=ALLOWED, slots=asked, max_len=256, max_new_tokens=12)
    for request in requests(make_batch(), 12):
        made.submit(request)
    made.step()
    assert made._slots is not None
    assert made._slots.most == at_once
