"""The engine's parts: groups, noise and restrictions, loops, waits for the device."""

import gc
import itertools
import math
import weakref
from collections import Counter

import pytest
import torch
from engine_batches import ALLOWED, make_batch, requests, rows
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from arkfast.engine import Engine, graphs, slots, token_limit
from arkfast.engine.guards import LONGEST_PERIOD, LOOP_TOKENS, REPEATS, loop_ends
from arkfast.engine.prefill import LEAST_FILLED, Budget, encode, groups_of_similar_length
from arkfast.engine.rows import Rows
from arkfast.engine.sampling import gumbel_noise, penalise, restrict
from arkfast.records import AllowedTokens
from arkfast.testing import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model(seed=1)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200), st.integers(1, 200))
def test_groups_hold_everything_once_and_keep_the_budget(lengths, most, busy):
    groups = list(groups_of_similar_length(lengths, Budget(most, busy)))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[i] for i in group)
        assert len(group) == 1 or longest * len(group) <= most
        padded = [n for n, i in enumerate(group) if lengths[i] < LEAST_FILLED * longest]
        assert all(longest * n < busy for n in padded), "a clip that wastes much is there only to fill a small group"
    flat = [lengths[i] for group in groups for i in group]
    assert flat == sorted(flat, reverse=True)


def test_encoding_does_not_depend_on_the_group(model):
    batch = make_batch([9, 200, 33, 64, 120, 1])
    mels = [mel[:, :n] for mel, n in zip(batch.mel, batch.mel_lens, strict=True)]
    together, apart = encode(model, mels), encode(model, mels, Budget(1, 1))
    for mel, a, b in zip(mels, together, apart, strict=True):
        (want,), (count,) = model.get_audio_features(mel[None])
        assert a.shape == b.shape == (count, model.config.hidden_size)
        torch.testing.assert_close(a, want, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(b, want, atol=1e-6, rtol=1e-6)


def test_draws_follow_the_distribution():
    """Gumbel-max noise over many keys: chi-square of the counts below its 99.9 % quantile, for each temperature and position."""
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, float("-inf")])
    n = 20_000
    for position, temperature in ((0, 1.0), (3, 0.6), (17, 1.7)):
        noise = gumbel_noise(torch.arange(n) * 104729, torch.zeros(n, dtype=torch.long), position, 6, 1)
        counts = torch.bincount((scores / temperature + noise).argmax(-1), minlength=6).double()
        expected = (scores / temperature).softmax(-1).double() * n
        assert counts[5] == 0
        chi_square = float(((counts - expected)[:5] ** 2 / expected[:5]).sum())
        assert chi_square < 18.47, "the 99.9 % quantile for 4 degrees of freedom"


def test_noise_is_of_one_row_alone():
    """A tensor of positions and seeds gives each row what it gets from its own numbers."""
    keys, numbers = torch.tensor([5, 2**62, 9]), torch.tensor([0, 1, 7])
    positions, seeds = torch.tensor([3, 0, 500]), torch.tensor([1, -2, 2**40])
    together = gumbel_noise(keys, numbers, positions, 50, seeds)
    for i in range(3):
        one = gumbel_noise(keys[i : i + 1], numbers[i : i + 1], int(positions[i]), 50, int(seeds[i]))
        assert torch.equal(one[0], together[i])
    assert torch.isfinite(together).all()


def test_restrictions_are_each_rows_own():
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0, float("-inf")]).expand(5, -1).contiguous()
    kept = torch.isfinite(restrict(scores, torch.tensor([2, 0, 0, 3, 99]), torch.tensor([1.0, 0.7, 1.0, 0.5, 1.0])))
    assert kept.tolist() == [
        [True, True, False, False, False],
        [True, True, False, False, False],  # 0.64 alone is short of 0.7
        [True, True, True, True, False],
        [True, False, False, False, False],  # 0.67 among the best three
        [True, True, True, True, False],
    ]
    restricted = restrict(scores, torch.tensor([2] * 5), torch.ones(5))
    assert torch.equal(restricted[:, :2], scores[:, :2])


def test_penalties():
    scores = torch.tensor([[2.0, -2.0, 3.0, float("-inf")]])
    seen = torch.tensor([[True, True, False, True]])
    assert penalise(scores, seen, torch.tensor([2.0])).tolist() == [[1.0, -4.0, 3.0, float("-inf")]]


def written_out_loop_end(row, new):
    """The first of the last ``new`` lengths at which one phrase has stood there long enough, in plain Python."""
    for length in range(max(len(row) - new, 0) + 1, len(row) + 1):
        for period in range(1, LONGEST_PERIOD + 1):
            need = max(REPEATS * period, LOOP_TOKENS)
            tail = row[length - need : length] if length >= need else None
            if tail and all(a == b for a, b in zip(tail, tail[period:], strict=False)):
                return length
    return 0


@given(st.integers(0, 2**31), st.integers(1, 12))
def test_loops_are_found_where_they_end(seed, new):
    """Random rows, most of them with a phrase that is repeated from somewhere on, against the rule written out."""
    generator = torch.Generator().manual_seed(seed)

    def integer(low, high):
        return int(torch.randint(low, high, (1,), generator=generator))

    given_rows = []
    for _ in range(6):
        phrase = torch.randint(0, 4, (integer(1, LONGEST_PERIOD + 3),), generator=generator).tolist()
        row = torch.randint(0, 50, (integer(0, 40),), generator=generator).tolist() + phrase * integer(0, 9)
        given_rows.append((row + torch.randint(0, 50, (integer(0, 4),), generator=generator).tolist())[:120] or [1])
    lens = torch.tensor([len(row) for row in given_rows])
    tokens = torch.full((6, 121), 3)
    for i, row in enumerate(given_rows):
        tokens[i, : len(row)] = torch.tensor(row)
    assert loop_ends(tokens, lens, new).tolist() == [written_out_loop_end(row, new) for row in given_rows]


@pytest.mark.parametrize("look_every", [1, 4, 9, 130])
def test_a_loop_is_cut_at_the_same_place_whenever_it_is_looked_for(look_every):
    """A model that says one phrase for ever; without the guard it goes on to the limit."""
    steady = tiny_model(seed=1)
    with torch.no_grad():
        steady.lm_head.weight.zero_()  # every score is 0, and the lowest id wins
    batch = make_batch()
    for cut, want, reason in ((False, [0] * 140, "length"), (True, [0] * LOOP_TOKENS, "repetition")):
        engine = Engine(steady, allowed=ALLOWED, slots=2, max_len=240, max_new_tokens=140, look_every=look_every, cut_loops=cut)
        for request in requests(batch, 140):
            engine.submit(request)
        found = []
        while engine.pending:
            found += engine.step()
        assert [(f.tokens, f.finish_reason) for f in found] == [(want, reason)] * 5


@pytest.mark.parametrize("fails_at", [LOOP_TOKENS - 1, LOOP_TOKENS, LOOP_TOKENS + 1])
@pytest.mark.parametrize("look_every", [1, 2, 9])
def test_a_row_that_fails_beside_its_loop_harms_not_the_next_in_its_slot(monkeypatch, look_every, fails_at):
    """The first row's keys are no numbers from the ``fails_at``-th decode step on: at the loop's end it has failed, later it was cut."""
    steady, calls, original = tiny_model(seed=1), itertools.count(1), slots.decode_step
    with torch.no_grad():
        steady.lm_head.weight.zero_()

    def step(decoder, cache, tokens, positions, *rest):
        hidden = original(decoder, cache, tokens, positions, *rest)
        if next(calls) == fails_at and engine._slots.entries[0].id == 1:
            for part in (*cache.keys, *cache.values):
                part[0, :, positions[0]] = float("nan")
            return hidden * float("nan")
        return hidden

    monkeypatch.setattr(slots, "decode_step", step)
    engine = Engine(steady, allowed=ALLOWED, slots=1, max_len=160, max_new_tokens=60, look_every=look_every, cut_loops=True)
    for request in requests(make_batch([37, 37]), 60):
        engine.submit(request)
    found = []
    while engine.pending:
        found += engine.step()
    assert [f.finish_reason for f in found] == ["error" if fails_at < LOOP_TOKENS else "repetition", "repetition"]
    assert found[1].tokens == [0] * LOOP_TOKENS


def test_weights_are_not_walked_while_rows_are_under_way(model, monkeypatch):
    """A walk over all parameters takes as long as a decode step; and the encoder's are in no captured step."""
    engine = Engine(model, allowed=ALLOWED, slots=2, max_len=128, max_new_tokens=20, look_every=1)
    engine._graphs, walks = True, []
    monkeypatch.setattr(slots.StepGraphs, "run", lambda self, step, rows, mode: step(rows, mode))
    monkeypatch.setattr(model.model, "parameters", lambda: walks.append(1) or iter(()))
    monkeypatch.setattr(model, "parameters", lambda: pytest.fail("all of the model's were walked"))
    for request in requests(make_batch([37, 37]), 20):
        engine.submit(request)
    steps = 0
    while engine.pending:
        engine.step()
        steps += 1
    assert steps > 5
    assert len(walks) == 1


def test_token_limits():
    assert token_limit(1e300, 256, 1e300) == 256
    assert token_limit(10.0, 256, None) == 256
    assert token_limit(10.0, 256, 8.0) == 112
    assert token_limit(100.0, 256, 8.0) == 256
    assert token_limit(0.01, 256, 8.0) == 33


class HostReads(TorchDispatchMode):
    """Counts what would make the host wait for a device: values that Python reads, and results whose size depends on values."""

    WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique", "aten::_unique2", "aten::equal")

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split(".")[0]
        if name in self.WAITS or (name == "aten::index" and any(i is not None and i.dtype == torch.bool for i in args[1])):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "top_p": 0.9, "top_k": 9}, {"repetition_penalty": 1.2}], ids=str)
def test_the_host_waits_once_a_look_and_not_once_a_token(model, options, monkeypatch):
    """No operation of a rollout reads a value; ``tolist`` is called once for the lengths and once for each look."""
    allowed_never_stop = type(ALLOWED)(ranges=((0, 90),), stop_ids=(96,))
    engine = Engine(model, allowed=allowed_never_stop, topk=4, logprobs=True, look_every=8)
    batch = make_batch()
    engine.rollout(batch, max_new_tokens=4, **options)
    reads = Counter()
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.update(["tolist"]) or original(self))
    with HostReads() as hook:
        rollout = engine.rollout(batch, max_new_tokens=40, **options)
    tokens = int(rollout.lens.max())
    assert tokens >= 20
    assert hook.counts == {}
    assert reads["tolist"] <= 1 + math.ceil(tokens / 8) + 1
    assert len({t for row in rows(rollout) for t in row}) >= 10


@pytest.mark.parametrize(
    "let_go", [Engine.close, lambda engine: engine.rollout(make_batch([1600]), max_new_tokens=4)], ids=["close", "grow"]
)
def test_slots_that_are_given_up_free_their_memory_at_once(model, let_go):
    """Not when Python happens to look for cycles: new slots are made right afterwards, and the old ones may fill half a GPU."""
    engine = Engine(model, allowed=ALLOWED)
    engine.rollout(make_batch([9, 20]), max_new_tokens=4)
    keys = weakref.ref(engine._slots.cache)
    gc.disable()
    try:
        let_go(engine)
        assert keys() is None
    finally:
        gc.enable()


def test_ids_that_may_not_be_produced_behind_all_others_are_not_scored(model, monkeypatch):
    """The head's product is over the leading ids that hold every allowed one, and what is chosen is the same."""
    few = AllowedTokens(ranges=((0, 40),), stop_ids=(50,))
    seen: list[int] = []
    chosen = Rows.choose
    monkeypatch.setattr(Rows, "choose", lambda self, logits, *rest: (seen.append(logits.shape[1]), chosen(self, logits, *rest))[1])
    options = {"temperature": 1.1, "top_k": 20, "repetition_penalty": 1.3, "seed": 3}
    found = Engine(model, allowed=few, topk=3).rollout(make_batch([9, 20]), max_new_tokens=12, n=2, **options)
    assert set(seen) == {64}
    monkeypatch.setattr(AllowedTokens, "width", lambda self, vocab_size: vocab_size)
    whole = Engine(model, allowed=few, topk=3).rollout(make_batch([9, 20]), max_new_tokens=12, n=2, **options)
    assert seen[-1] == model.config.vocab_size > 64
    assert torch.equal(found.tokens, whole.tokens)
    assert torch.equal(found.topk_ids, whole.topk_ids)
    assert len(set(found.tokens.flatten().tolist())) >= 10


def test_a_batch_that_is_a_little_longer_finds_room(model):
    """Captured steps stay with their slots: new ones for every longer batch would be captured again."""
    engine = Engine(model, allowed=ALLOWED)
    engine.rollout(make_batch([9, 20]), max_new_tokens=4)
    slots = engine._slots
    engine.rollout(make_batch([60, 200]), max_new_tokens=4)
    assert engine._slots is slots
    assert slots.cache.length == 128


def test_no_two_engines_capture_on_one_stream_at_a_time(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: object())
    device = torch.device("cuda", 7)
    owners = [graphs.StepGraphs(None, device) for _ in range(3)]
    streams = [graphs._lent_stream(owner, device) for owner in owners]
    assert len(set(streams)) == 3
    del owners[1]
    later = [graphs.StepGraphs(None, device) for _ in range(2)]
    again = [graphs._lent_stream(owner, device) for owner in later]
    assert again[0] is streams[1]
    assert again[1] not in streams
