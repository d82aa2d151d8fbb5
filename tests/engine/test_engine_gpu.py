"""The engine on a GPU: captured steps, refills, noise and waits, in float32 on the tiny model, against ``generate`` and against itself.

Graphs, streams and waits exist there alone; what they must not change is proved on a CPU by the tests beside this file.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from engine_batches import ALLOWED, alone, distinct, generated, make_batch, requests, rows

from arkfast.engine import Engine
from arkfast.engine.prefill import LOOKED_AT
from arkfast.engine.slots import Slots
from arkfast.records import AllowedTokens
from arkfast.testing import tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is seen")]


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Convolutions in float32 proper: at ten bits, a clip's encoding would depend on how it is batched."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def model():
    return tiny_model(seed=1).cuda()


def batch_of(*frames):
    return (make_batch(list(frames)) if frames else make_batch()).to("cuda")


def captured(engine):
    """The graphs of an engine's slots, by rows and mode; none was given up."""
    steps = engine._slots._graphs
    assert not steps.broken
    return steps._graphs


def test_greedy_with_graphs_equals_that_without_and_generate(model):
    batch = batch_of()
    want, logprobs = generated(model, batch, 20)
    assert distinct(want) >= 10, "too few distinct tokens for the comparison to mean anything"
    for graphs in (True, False):
        engine = Engine(model, allowed=ALLOWED, logprobs=True, topk=4, graphs=graphs)
        for _ in range(2):  # captured, then replayed alone
            rollout = engine.rollout(batch, max_new_tokens=20)
            assert rows(rollout) == want
            torch.testing.assert_close(rollout.logprob, torch.cat(logprobs), atol=5e-5, rtol=0)
            row, place = rollout.packed_index()
            assert torch.equal(rollout.topk_ids[:, 0].long(), rollout.tokens[row, place])
        assert bool(captured(engine)) == graphs


def test_graphs_are_the_default_here(model):
    engine = Engine(model, allowed=ALLOWED)
    engine.rollout(batch_of(), max_new_tokens=4)
    assert captured(engine)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_refilled_slots_with_graphs_equal_generate(model, penalty):
    """Rows move to other slots and graphs of fewer rows take over as others end."""
    generator = torch.Generator().manual_seed(3)
    frames, limits = (torch.randint(low, high, (9,), generator=generator).tolist() for low, high in ((2, 160), (1, 28)))
    batch = batch_of(*frames)
    want = [generated(model, alone(batch, i), limits[i], penalty=penalty)[0][0] for i in range(9)]
    assert distinct(want) >= 10
    for slots in (1, 3, 5, None):
        engine = Engine(model, allowed=ALLOWED, slots=slots, look_every=3, graphs=True)
        assert rows(engine.rollout(batch, max_new_tokens=limits, repetition_penalty=penalty)) == want
        assert captured(engine)


def test_requests_that_come_and_go_are_answered_as_alone(model):
    batch = batch_of()
    want = [[token for token in row if token != 95] for row in generated(model, batch, 20)[0]]
    engine = Engine(model, allowed=ALLOWED, slots=2, max_len=128, max_new_tokens=20, look_every=2)
    waiting, ids, found = requests(batch, 20), [], {}
    while waiting or engine.pending:
        if waiting:
            ids.append(engine.submit(waiting.pop(0)))
        found |= {finished.id: finished.tokens for finished in engine.step()}
    assert [found[i] for i in ids] == want
    assert captured(engine)


@pytest.mark.parametrize("slots", [2, 5, 16])
def test_what_is_made_ready_beside_decoding_changes_no_answer(model, monkeypatch, slots):
    """Features come from the host; encoder, prefill and decoding have streams of their own, and looks are late."""
    monkeypatch.setitem(LOOKED_AT, "cuda", 1)
    batch = make_batch([37, 96, 8, 61, 122, 15, 80, 44] * 4)
    found = []
    for overlap in (False, True):
        engine = Engine(model, allowed=ALLOWED, slots=slots, max_len=128, max_new_tokens=20, look_every=2, overlap=overlap)
        ids = [engine.submit(request) for request in requests(batch, 20)]
        done = {}
        while engine.pending:
            done |= {finished.id: finished.tokens for finished in engine.step()}
        found.append([done[i] for i in ids])
        assert captured(engine)
    assert found[0] == found[1]
    assert distinct(found[0]) >= 10


@pytest.mark.parametrize("restricted", [{}, {"top_k": 20, "top_p": 0.9}], ids=str)
def test_sampled_rollouts_do_not_depend_on_slots_or_graphs(model, restricted):
    options = {"max_new_tokens": 10, "temperature": 1.0, "n": 3, "seed": 5, **restricted}
    batch = batch_of()
    want = rows(Engine(model, allowed=ALLOWED, graphs=False).rollout(batch, **options))
    assert len({tuple(row) for row in want}) > 10
    for slots in (None, 2, 4, 7):
        engine = Engine(model, allowed=ALLOWED, slots=slots, graphs=True)
        assert rows(engine.rollout(batch, **options)) == want
        assert captured(engine)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 5, "n": 3}], ids=["greedy", "sampled"])
def test_turns_of_ranges_with_graphs_equal_those_without(model, options):
    allowed = AllowedTokens(ranges=((0, 90),), stop_ids=(95,), period=((0, 30), (30, 60), (60, 90)))
    batch = batch_of()
    want = rows(Engine(model, allowed=allowed, graphs=False).rollout(batch, max_new_tokens=12, **options))
    assert distinct(want) >= 10
    for t, token in ((t, token) for row in want for t, token in enumerate(row)):
        assert 30 * (t % 3) <= token < 30 * (t % 3 + 1) or (token == 95 and t % 3 == 0)
    for slots in (None, 2):
        engine = Engine(model, allowed=allowed, slots=slots, topk=4, logprobs=True, graphs=True)
        assert rows(engine.rollout(batch, max_new_tokens=12, **options)) == want
        assert captured(engine)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "top_k": 20, "repetition_penalty": 1.3}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "launched"])
def test_no_step_waits_for_the_device(model, monkeypatch, graphs, options):
    engine, batch = Engine(model, allowed=ALLOWED, slots=3, topk=4, logprobs=True, graphs=graphs), batch_of()
    want = rows(engine.rollout(batch, max_new_tokens=16, **options))  # compiles and captures
    advance, calls = Slots.advance, []

    def strict(self, steps):
        torch.cuda.set_sync_debug_mode("error")
        try:
            advance(self, steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        calls.append(steps)

    monkeypatch.setattr(Slots, "advance", strict)
    assert rows(engine.rollout(batch, max_new_tokens=16, **options)) == want
    assert len(calls) >= 2


def test_the_guard_notices_a_wait():
    """Else the test above proves nothing."""
    x = torch.ones(1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            x.item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_weights_that_change_in_place_need_no_new_capture():
    model, batch = tiny_model(seed=1).cuda(), batch_of()
    engine = Engine(model, allowed=ALLOWED, graphs=True)
    before, graphs = rows(engine.rollout(batch, max_new_tokens=12)), dict(captured(engine))
    with torch.no_grad():
        model.load_state_dict(tiny_model(seed=2).state_dict())
    after = rows(engine.rollout(batch, max_new_tokens=12))
    assert after == generated(model, batch, 12)[0]
    assert after != before
    again = captured(engine)
    assert all(again[key] is graph for key, graph in graphs.items())


def test_weights_that_move_are_captured_anew():
    model, batch = tiny_model(seed=1).cuda(), batch_of()
    engine = Engine(model, allowed=ALLOWED, graphs=True)
    engine.rollout(batch, max_new_tokens=12)
    graphs = captured(engine)
    other = tiny_model(seed=2).cuda()
    for own, new in zip(model.parameters(), other.parameters(), strict=True):
        own.data = new.data
    assert rows(engine.rollout(batch, max_new_tokens=12)) == generated(model, batch, 12)[0]
    assert captured(engine) is not graphs


def test_graphs_of_several_sizes_share_their_memory(model):
    """Every graph lies in one pool, and a further one takes little more than is there already."""
    engine = Engine(model, allowed=ALLOWED, graphs=True)
    batch = batch_of(*([60] * 24))
    want = rows(engine.rollout(batch, max_new_tokens=6))
    for count in (1, 2, 4, 7, 16):
        part = alone(batch, range(count))
        assert rows(engine.rollout(part, max_new_tokens=6)) == want[:count]
    graphs = captured(engine)
    assert {size for size, _ in graphs} >= {1, 2, 4, 8, 16, 24}
    assert len({graph.pool() for graph in graphs.values()}) == 1
