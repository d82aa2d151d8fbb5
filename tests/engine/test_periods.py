"""Answers whose positions take their ids from ranges in turn, as flattened codebooks do, against a loop written out in plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_batches import ALLOWED, distinct, make_batch, requests, rows

from arkfast.engine import Engine
from arkfast.engine.sampling import gumbel_noise
from arkfast.records import AllowedTokens
from arkfast.testing import tiny_model

PERIOD = ((0, 30), (30, 60), (60, 90))
TURNS = AllowedTokens(ranges=((0, 90),), stop_ids=(95,), period=PERIOD)
V, NEW = 97, 14


@pytest.fixture(scope="module")
def model():
    """One whose end token is likely enough to be drawn now and then."""
    model = tiny_model(seed=1)
    with torch.no_grad():
        model.lm_head.weight[95] *= 1.6
    return model


def may(position: int) -> list[int]:
    """The ids of a position."""
    start, stop = PERIOD[position % 3]
    return [*range(start, stop), *([95] if position % 3 == 0 else [])]


@torch.no_grad()
def written_out(model: Any, batch: Any, i: int, number: int = 0, temperature: float = 0.0, seed: int = 0, top_k: int = 0) -> Any:
    """(ids, log-probabilities, best 4 ids of each position): a whole forward for each id, and no cache."""
    ids = batch.input_ids[i, : batch.prompt_lens[i]]
    mel = batch.mel[i : i + 1, :, : batch.mel_lens[i]]
    new: list[int] = []
    logprobs, best = [], []
    while len(new) < NEW and 95 not in new:
        scores = model(input_ids=torch.cat([ids, torch.tensor(new, dtype=torch.int64)])[None], audios=mel).logits[0, -1]
        own = torch.tensor(may(len(new)))
        choice = scores[own]
        best.append(own[choice.sort(descending=True, stable=True).indices[:4]].tolist())
        if temperature:
            noise = gumbel_noise(batch.keys[i : i + 1], torch.tensor([number]), len(new), V, seed)[0, own]
            warm = choice / temperature
            if top_k:
                warm = warm.masked_fill(warm < warm.sort(descending=True).values[min(top_k, len(own)) - 1], float("-inf"))
            choice = warm + noise
        place = int(choice.argmax())
        logprobs.append(float(scores[own].log_softmax(0)[place]))
        new.append(int(own[place]))
    return new, logprobs, best


@pytest.mark.parametrize("slots", [None, 2])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 1.3, "seed": 4, "top_k": 5}],
    ids=["greedy", "sampled", "restricted"],
)
def test_rollouts_equal_the_loop_written_out(model, options, slots):
    batch, n = make_batch(), 1 + 5 * bool(options)
    got = Engine(model, allowed=TURNS, topk=4, logprobs=True, slots=slots).rollout(batch, n=n, max_new_tokens=NEW, **options)
    want = [written_out(model, batch, i, number, **options) for i in range(batch.size) for number in range(n)]
    assert rows(got) == [ids for ids, _, _ in want]
    torch.testing.assert_close(got.logprob, torch.tensor([x for _, own, _ in want for x in own]), atol=5e-5, rtol=0)
    assert got.topk_ids.tolist() == [ids for _, _, best in want for ids in best]
    for row, stopped in zip(rows(got), got.stopped.tolist(), strict=True):
        assert all(token in may(t) for t, token in enumerate(row))
        assert stopped == (row[-1] == 95) == (len(row) % 3 == 1 and len(row) < NEW), "an answer ends where a turn begins"
    assert distinct(rows(got)) >= 10
    if options:
        assert 3 <= int(got.stopped.sum()) < len(got.lens), "some answers end by themselves, at several lengths"


def test_a_period_changes_what_is_decoded(model):
    batch = make_batch()
    plain = Engine(model, allowed=ALLOWED).rollout(batch, max_new_tokens=NEW)
    assert not all(token in may(t) for row in rows(plain) for t, token in enumerate(row))


def test_a_penalty_keeps_to_the_turns(model):
    batch = make_batch()
    engine = Engine(model, allowed=TURNS)
    got = rows(engine.rollout(batch, max_new_tokens=NEW, repetition_penalty=1.5))
    assert all(token in may(t) for row in got for t, token in enumerate(row))
    assert got != rows(engine.rollout(batch, max_new_tokens=NEW))


def test_a_period_of_one_range_and_of_everything_changes_nothing(model):
    batch = make_batch()
    for options in ({}, {"temperature": 1.0, "seed": 5, "top_p": 0.9}):
        plain, whole = (
            Engine(model, allowed=allowed, topk=4, logprobs=True).rollout(batch, n=2, max_new_tokens=NEW, **options)
            for allowed in (ALLOWED, AllowedTokens(ranges=((0, 90),), stop_ids=(95,), period=((0, 90),)))
        )
        assert rows(whole) == rows(plain)
        assert torch.equal(whole.topk_ids, plain.topk_ids)
        assert torch.equal(whole.logprob, plain.logprob)


def test_requests_that_take_others_slots_begin_their_own_turns(model):
    batch = make_batch()
    engine = Engine(model, allowed=TURNS, slots=2, max_len=128, max_new_tokens=NEW, look_every=1)
    ids = [engine.submit(request) for request in requests(batch, NEW)]
    found = {}
    while engine.pending:
        found |= {finished.id: finished.tokens for finished in engine.step()}
    want = [written_out(model, batch, i)[0] for i in range(batch.size)]
    assert [found[i] for i in ids] == [[token for token in row if token != 95] for row in want]


def test_ids_past_the_models_are_refused(model):
    allowed = AllowedTokens(ranges=((0, 200),), stop_ids=(300,), period=((0, 30), (90, 120)))
    with pytest.raises(ValueError, match=r"Engine: allowed has the range \[90, 120\); the model's ids end at 97"):
        Engine(model, allowed=allowed)
