"""Decoding that never waits for the host, nor for the encoder: the same ids, a look later, and in an order that streams keep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from engine_batches import ALLOWED, alone, distinct, make_batch, requests, rows

from arkfast.engine import Engine, waiting
from arkfast.engine.beside import Beside
from arkfast.models import ArkasrForConditionalGeneration
from arkfast.testing import tiny_model

FRAMES = [37, 96, 8, 61, 122, 15, 80, 44, 122, 9, 61, 30]
LIMITS = [20, 3, 12, 1, 20, 7, 20, 16, 2, 20, 9, 20]
GPU = torch.device("cuda", 1)


@pytest.fixture(scope="module")
def model() -> ArkasrForConditionalGeneration:
    return tiny_model(seed=1)


def answered(engine: Engine, asked: list, *, cancelled: int | None = None) -> tuple[dict, int]:
    """(what became of each request, steps of the engine)."""
    ids = [engine.submit(request) for request in asked]
    found, steps = {}, 0
    while engine.pending:
        for finished in engine.step():
            assert finished.id not in found
            found[finished.id] = replace(finished, id=0)
        steps += 1
        if cancelled is not None and steps == cancelled:
            assert engine.cancel(ids[3]) != (ids[3] in found)
    return {i: found.get(id_) for i, id_ in enumerate(ids)}, steps


@pytest.mark.parametrize(("slots", "look_every"), [(1, 3), (2, 1), (5, 8), (12, 2)])
def test_requests_are_answered_alike(model: ArkasrForConditionalGeneration, slots: int, look_every: int) -> None:
    """Greedy and drawn ones, whose rows end at their limits and before, through slots that are refilled."""
    asked = [replace(request, max_new_tokens=limit) for request, limit in zip(requests(make_batch(FRAMES), 20), LIMITS, strict=True)]
    options = {"allowed": ALLOWED, "slots": slots, "max_len": 128, "max_new_tokens": 20, "look_every": look_every, "logprobs": True}
    want, steps = answered(Engine(model, overlap=False, silent=True, **options), asked)
    got, later = answered(Engine(model, overlap=True, silent=True, **options), asked)
    assert distinct([done.tokens for done in want.values()]) >= 10
    for i, done in want.items():
        assert (got[i].tokens, got[i].finish_reason) == (done.tokens, done.finish_reason)
        torch.testing.assert_close(torch.tensor(got[i].logprobs), torch.tensor(done.logprobs), atol=5e-5, rtol=0)
        assert got[i].silent == pytest.approx(done.silent, abs=5e-5)
    assert later > steps, "what ended is known a look later, and given back when its ids have arrived"


@pytest.mark.parametrize("slots", [None, 3])
def test_rollouts_are_equal(model: ArkasrForConditionalGeneration, slots: int | None) -> None:
    """Rollouts share their prompts; a second batch with the same rows finds nothing of the first."""
    batch = make_batch(FRAMES)
    early = Engine(model, allowed=ALLOWED, topk=4, logprobs=True, slots=slots, overlap=False)
    late = Engine(model, allowed=ALLOWED, topk=4, logprobs=True, slots=slots, overlap=True)
    for seed, which in ((3, range(12)), (4, [5, 2, 0, 7])):
        options = {"max_new_tokens": [LIMITS[i] for i in which], "n": 2, "temperature": 0.9, "seed": seed}
        want, got = (engine.rollout(alone(batch, which), **options) for engine in (early, late))
        assert rows(got) == rows(want)
        assert torch.equal(got.stopped, want.stopped)
        assert torch.equal(got.topk_ids, want.topk_ids)
        torch.testing.assert_close(got.logprob, want.logprob, atol=5e-5, rtol=0)
    assert distinct(rows(want)) >= 10


def test_loops_and_penalties_are_as_they_were(model: ArkasrForConditionalGeneration) -> None:
    steady = tiny_model(seed=1)
    with torch.no_grad():
        steady.lm_head.weight.zero_()
    asked = requests(make_batch(), 60)
    options = {"allowed": ALLOWED, "slots": 2, "max_len": 128, "max_new_tokens": 60, "cut_loops": True, "look_every": 4}
    want, _ = answered(Engine(steady, overlap=False, **options), asked)
    got, _ = answered(Engine(steady, overlap=True, **options), asked)
    assert got == want
    assert {done.finish_reason for done in want.values()} == {"repetition"}


def test_a_row_whose_scores_are_not_numbers_harms_no_other(model: ArkasrForConditionalGeneration) -> None:
    asked = requests(make_batch(), 20)
    want, _ = answered(Engine(model, allowed=ALLOWED, slots=2, max_len=128, max_new_tokens=20, overlap=False), asked)
    asked[1] = replace(asked[1], mel=asked[1].mel * float("nan"))
    got, _ = answered(Engine(model, allowed=ALLOWED, slots=2, max_len=128, max_new_tokens=20, overlap=True), asked)
    assert got[1].finish_reason == "error"
    assert {i: done for i, done in got.items() if i != 1} == {i: done for i, done in want.items() if i != 1}


@pytest.mark.parametrize("cancelled", [1, 3, 4, 5, 6])
def test_a_request_can_be_cancelled_whenever(model: ArkasrForConditionalGeneration, cancelled: int) -> None:
    """Its row may be decoded, known to have ended, or its ids under way."""
    options = {"allowed": ALLOWED, "slots": 4, "max_len": 128, "max_new_tokens": 20, "look_every": 2}
    asked = [replace(request, max_new_tokens=8 if i == 3 else 20) for i, request in enumerate(requests(make_batch(), 20))]
    want, _ = answered(Engine(model, overlap=False, **options), asked)
    got, _ = answered(Engine(model, overlap=True, **options), asked, cancelled=cancelled)
    assert got[3] in (None, want[3])
    assert {i: done for i, done in got.items() if i != 3} == {i: done for i, done in want.items() if i != 3}


def test_prompts_are_ready_before_slots_are_free(model: ArkasrForConditionalGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    """With eight slots two prompts are kept ready and a slotful is encoded, while rows are decoded; without overlap nothing is."""
    monkeypatch.setitem(waiting.LOOKED_AT, "cpu", 1)
    batch = make_batch(FRAMES * 3)
    for overlap in (True, False):
        engine = Engine(model, allowed=ALLOWED, slots=8, max_len=128, max_new_tokens=20, look_every=1, overlap=overlap)
        for request in requests(batch, 20):
            engine.submit(request)
        engine.step()
        engine.step()
        assert len(engine._slots.entries) >= 7
        ready, encoded = len(engine._queue._ready), sum(w.audio is not None for w in engine._queue._waiting)
        assert (ready >= 2, ready + encoded >= 8) == ((True, True) if overlap else (False, False))
        engine.close()
        assert engine.pending == 0


def test_what_cannot_be_encoded_ahead_is_given_back_and_harms_no_other(
    model: ArkasrForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, original = requests(make_batch(FRAMES), 20), waiting.encode
    engine = Engine(model, allowed=ALLOWED, slots=2, max_len=128, max_new_tokens=20, overlap=True)
    monkeypatch.setitem(waiting.LOOKED_AT, "cpu", 1)
    want, _ = answered(engine, asked)

    def encode(model: ArkasrForConditionalGeneration, mels: list[torch.Tensor]) -> list[torch.Tensor]:
        if any(mel is asked[7].mel for mel in mels):
            raise ValueError("a bad clip")
        return original(model, mels)

    monkeypatch.setattr(waiting, "encode", encode)
    got, _ = answered(engine, asked)
    assert got[7].error == "ValueError: a bad clip"
    assert {i: done for i, done in got.items() if i != 7} == {i: done for i, done in want.items() if i != 7}


class Event:
    """Stands for the work that its stream had been given when it was recorded."""

    def __init__(self) -> None:
        self.after: set[str] = set()

    def record(self, stream: Stream) -> None:
        self.after = set(stream.done)


class Stream:
    """Knows what is certainly done when its next work begins: its own work before, and what it waited for."""

    def __init__(self, device: torch.device, name: str = "side") -> None:
        self.device, self.name, self.done = device, name, set[str]()

    def wait_event(self, event: Event) -> None:
        self.done |= event.after

    def run(self, what: str) -> None:
        self.done.add(what)


class World:
    """Streams of a GPU that are stand-ins; what the engine computes is noted with the stream that it was queued on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.main = Stream(GPU, "main")
        self.current = [self.main]
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current[-1])
        monkeypatch.setattr(torch.cuda, "stream", self.inside)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)

    @contextmanager
    def inside(self, stream: Stream) -> Iterator[None]:
        self.current.append(stream)
        try:
            yield
        finally:
            self.current.pop()


def test_streams_keep_the_order_that_the_work_needs(model: ArkasrForConditionalGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every prompt is prefilled after its clip was encoded and read after it was prefilled, whichever streams did both; and side streams
    begin nothing before what was read of their memory has been read."""
    world = World(monkeypatch)
    engine = Engine(model, allowed=ALLOWED, slots=4, max_len=128, max_new_tokens=20, look_every=2, overlap=True)
    queue = engine._queue
    monkeypatch.setattr(queue, "_beside", (Beside(GPU), Beside(GPU)))
    monkeypatch.setattr(queue, "_device", torch.device("cpu"))
    monkeypatch.setitem(waiting.LOOKED_AT, "cpu", 1)
    encoded: dict[int, str] = {}
    where: dict[str, set[str]] = {"encode": set(), "prefill": set()}
    original_encode, original_prefill = waiting.encode, waiting.prefill_each
    count = iter(range(10_000))
    admitted: list[str] = []

    def encode(model: ArkasrForConditionalGeneration, mels: list[torch.Tensor]) -> list[torch.Tensor]:
        stream, found = world.current[-1], original_encode(model, mels)
        assert stream is world.main or set(admitted) <= stream.done
        stream.run(name := f"encode {next(count)}")
        where["encode"].add(stream.name)
        encoded.update({id(own): name for own in found})
        kept.extend(found)
        return found

    def prefill(model: ArkasrForConditionalGeneration, prompts: list[torch.Tensor], audio: list[torch.Tensor]) -> object:
        stream, found = world.current[-1], original_prefill(model, prompts, audio)
        assert {encoded[id(own)] for own in audio} <= stream.done, "it reads embeddings that may not be there yet"
        assert stream is world.main or set(admitted) <= stream.done, "it writes where prompts may not have been read yet"
        stream.run(name := f"prefill {next(count)}")
        where["prefill"].add(stream.name)
        prefilled[id(found)] = name
        kept.append(found)
        return found

    kept: list[object] = []  # so that no id is given twice
    prefilled: dict[int, str] = {}
    monkeypatch.setattr(waiting, "encode", encode)
    monkeypatch.setattr(waiting, "prefill_each", prefill)
    asked = requests(make_batch(FRAMES * 2), 20)
    ids = [engine.submit(request) for request in asked]
    slots = engine._reserve(rows=4, length=128, new=20)
    original_admit = slots.admit

    def admit(prompts: object, source: list[int], entries: list) -> None:
        assert world.current[-1] is world.main
        assert prefilled[id(prompts)] in world.main.done, "it reads prompts that may not be there yet"
        original_admit(prompts, source, entries)
        world.main.run(name := f"admit {next(count)}")
        admitted.append(name)

    monkeypatch.setattr(slots, "admit", admit)
    found = {}
    while engine.pending:
        found |= {finished.id: finished.tokens for finished in engine.step()}
    assert where == {"encode": {"main", "side"}, "prefill": {"main", "side"}}, (
        "only what nothing else was decoded beside runs on the main one"
    )
    monkeypatch.undo()
    want, _ = answered(Engine(model, allowed=ALLOWED, slots=4, max_len=128, max_new_tokens=20, overlap=False), asked)
    assert [found[i] for i in ids] == [done.tokens for done in want.values()]


@torch.no_grad()
def test_a_look_that_is_late_waits_for_nothing_that_was_queued_since(model: ArkasrForConditionalGeneration) -> None:
    """Of two looks the second gives what stood at the first, and rows that were given up meanwhile are left out."""
    engine = Engine(model, allowed=ALLOWED, slots=3, max_len=128, max_new_tokens=20, look_every=2, overlap=True)
    for request in requests(make_batch([37, 96, 8]), 20):
        engine.submit(request)
    slots = engine._reserve(rows=3, length=128, new=20)
    engine._admit(slots)
    assert slots.look(loops_since=0, late=True) == []
    slots.advance(2)
    first = slots.look(loops_since=0, late=True)
    assert [entry.produced for _, entry, _ in first] == [1, 1, 1]
    assert [slots._produced(entry) for entry in slots.entries] == [3, 3, 3]
    slots.advance(2)
    gone = slots.entries[0].id
    slots.release([0])
    second = slots.look(loops_since=0, late=True)
    assert {entry.id for _, entry, _ in second} == {1, 2, 3} - {gone}
    assert all(slots.entries[place] is entry for place, entry, _ in second)
    assert [entry.produced for _, entry, _ in second] == [3, 3]
