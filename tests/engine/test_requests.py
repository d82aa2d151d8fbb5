"""One request at a time: queueing, refills, cancellation, and faults that stay with their request."""

from dataclasses import replace

import pytest
import torch
from engine_batches import ALLOWED, FRAMES, alone, distinct, generated, make_batch, requests

from arkfast.engine import Engine, Request, Sampling
from arkfast.records import InputError
from arkfast.testing import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model(seed=1)


@pytest.fixture(scope="module")
def want(model):
    """Greedy ids without the end token, each clip alone."""
    transcripts = [[token for token in row if token != 95] for row in generated(model, make_batch(), 20)[0]]
    assert distinct(transcripts) >= 10
    return transcripts


def drained(engine):
    found = {}
    while engine.pending:
        for finished in engine.step():
            assert finished.id not in found
            found[finished.id] = finished
    return found


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_requests_are_answered_as_alone(model, want, slots):
    engine = Engine(model, allowed=ALLOWED, slots=slots, max_len=128, max_new_tokens=20, logprobs=True)
    ids = [engine.submit(request) for request in requests(make_batch(), 20)]
    assert engine.pending == 5
    found = drained(engine)
    assert [found[i].tokens for i in ids] == want
    for i, tokens in zip(ids, want, strict=True):
        assert found[i].finish_reason == ("stop" if len(tokens) < 20 else "length")
        assert len(found[i].logprobs) == len(tokens) + (found[i].finish_reason == "stop")
        assert max(found[i].logprobs) <= 0
    assert engine.step() == []


def test_requests_may_come_while_others_are_decoded(model, want):
    engine = Engine(model, allowed=ALLOWED, slots=2, max_len=128, max_new_tokens=20, look_every=2)
    waiting, ids, found = requests(make_batch(), 20), [], {}
    while waiting or engine.pending:
        if waiting:
            ids.append(engine.submit(waiting.pop(0)))
        found |= {finished.id: finished for finished in engine.step()}
    assert [found[i].tokens for i in ids] == want


def test_every_request_has_its_own_sampling(model, want):
    """Greedy, drawn and penalised requests side by side give what each gives alone."""
    batch = make_batch()
    samplings = [
        Sampling(),
        Sampling(temperature=1.0, seed=3),
        Sampling(repetition_penalty=1.5),
        Sampling(temperature=0.7, top_k=5, top_p=0.9, seed=4),
        Sampling(),
    ]
    engine = Engine(model, allowed=ALLOWED, slots=5, max_len=128, max_new_tokens=20)
    mixed = [requests(batch, 20, sampling=sampling)[i] for i, sampling in enumerate(samplings)]
    ids = [engine.submit(request) for request in mixed]
    together = drained(engine)
    for i, (id, request) in enumerate(zip(ids, mixed, strict=True)):
        one = Engine(model, allowed=ALLOWED, slots=1, max_len=128, max_new_tokens=20)
        one.submit(request)
        (single,) = drained(one).values()
        assert single.tokens == together[id].tokens
        assert (single.tokens == want[i]) == (samplings[i] == Sampling())


def test_cancelling_frees_a_slot_and_disturbs_nobody(model, want):
    engine = Engine(model, allowed=ALLOWED, slots=2, max_len=128, max_new_tokens=20, look_every=1)
    ids = [engine.submit(request) for request in requests(make_batch(), 20)]
    found = {finished.id: finished for finished in engine.step()}
    decoding = [entry.id for entry in engine._slots.entries]
    assert len(decoding) == 2
    queued = next(i for i in ids if i not in decoding and i not in found)
    assert engine.cancel(decoding[0])
    assert engine._slots.free == 1
    assert engine.cancel(queued)
    assert not engine.cancel(queued), "it is gone already"
    found |= drained(engine)
    left = [i for i in ids if i not in (decoding[0], queued)]
    assert sorted(found) == sorted(left)
    assert [found[i].tokens for i in left] == [want[ids.index(i)] for i in left]
    assert not engine.cancel(left[0])


@pytest.mark.parametrize("place", range(5))
def test_a_request_can_be_cancelled_wherever_it_waits(model, want, place):
    """Before anything was encoded, and when those ahead are prefilled and decoded."""
    for steps in (0, 1):
        engine = Engine(model, allowed=ALLOWED, slots=2, max_len=128, max_new_tokens=20, look_every=1)
        ids = [engine.submit(request) for request in requests(make_batch(), 20)]
        found = {finished.id: finished for _ in range(steps) for finished in engine.step()}
        assert engine.cancel(ids[place])
        assert not engine.cancel(ids[place])
        assert engine.pending == 4
        found |= drained(engine)
        assert {i: found[i].tokens for i in found} == {i: tokens for n, (i, tokens) in enumerate(zip(ids, want, strict=True)) if n != place}


def test_a_request_that_could_not_be_encoded_can_be_cancelled(model, monkeypatch):
    engine = Engine(model, allowed=ALLOWED, slots=2, max_len=128, max_new_tokens=20)
    monkeypatch.setattr(model, "get_audio_features", lambda *_, **__: 1 / 0)
    first, second = (engine.submit(request) for request in requests(make_batch(FRAMES[:2]), 20))
    engine._admit(engine._reserve(rows=2, length=128, new=20))
    assert engine.cancel(first)
    (left,) = engine.step()
    assert (left.id, left.error) == (second, "ZeroDivisionError: division by zero")


def test_features_that_are_not_numbers_fail_their_request_alone(model, want):
    batch = make_batch()
    batch.mel[3, :, : FRAMES[3]] = float("nan")
    engine = Engine(model, allowed=ALLOWED, slots=2, max_len=128, max_new_tokens=20)
    ids = [engine.submit(request) for request in requests(batch, 20)]
    found = drained(engine)
    assert found[ids[3]].finish_reason == "error"
    assert "not numbers" in found[ids[3]].error
    assert found[ids[3]].tokens == []
    assert [found[i].tokens for n, i in enumerate(ids) if n != 3] == [row for n, row in enumerate(want) if n != 3]


@pytest.mark.parametrize("stage", ["get_audio_features", "encode_prompt"])
def test_a_request_that_cannot_be_encoded_fails_alone(model, want, monkeypatch, stage):
    """The group is halved until the request at fault stands alone."""
    batch = make_batch()
    original, marker = getattr(model, stage), float(batch.mel[2, 0, 0])
    audio = model.get_audio_features(batch.mel[2:3], batch.mel_lens[2:3])[0][0, 0]

    def failing(first, *args, **options):
        if stage == "get_audio_features" and bool((first[:, 0, 0] == marker).any()):
            raise ValueError("no kernel for this clip")
        if stage == "encode_prompt" and bool(torch.isclose(options["audio_embeds"][0][:, 0], audio, rtol=1e-3).all(1).any()):
            raise ValueError("no kernel for this clip")
        return original(first, *args, **options)

    monkeypatch.setattr(model, stage, failing)
    engine = Engine(model, allowed=ALLOWED, slots=8, max_len=128, max_new_tokens=20)
    ids = [engine.submit(request) for request in requests(batch, 20)]
    found = drained(engine)
    assert found[ids[2]].finish_reason == "error"
    assert found[ids[2]].error == "ValueError: no kernel for this clip"
    assert [found[i].tokens for n, i in enumerate(ids) if n != 2] == [row for n, row in enumerate(want) if n != 2]


def test_what_cannot_be_decoded_is_refused_at_the_door(model):
    engine = Engine(model, allowed=ALLOWED, slots=2, max_len=64, max_new_tokens=20)
    good = requests(make_batch(), 20)[1]
    for change, message in (
        ({"mel": good.mel[:80]}, r"must be \[128, frames\], got \[80, 96\]"),
        ({"mel": good.mel[:, :0]}, r"got \[128, 0\]"),
        ({"input_ids": good.input_ids[3:]}, "with 12 audio placeholders"),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 to 20, got 0"),
        ({"max_new_tokens": 21}, "max_new_tokens must be 1 to 20, got 21"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be 1 to 20, got 2.5"),
        ({"mel": good.mel.long()}, "must be float32, got torch.int64"),
        ({"input_ids": good.input_ids.float()}, "must be int64, got torch.float32"),
        ({"input_ids": good.input_ids.where(good.input_ids != 5, 97)}, "ids must be 0 to 96, got 97; make the prompt"),
        ({"input_ids": good.input_ids.where(good.input_ids != 5, -5)}, "ids must be 0 to 96, got -5; make the prompt"),
        ({"key": 1 << 63}, "key must be within int64, got 9223372036854775808"),
        ({"key": -(1 << 63) - 1}, "key must be within int64"),
    ):
        with pytest.raises(InputError, match=message):
            engine.submit(Request(**{**good.__dict__, **change}))
    long = requests(make_batch([400]), 20)[0]
    with pytest.raises(InputError, match="a slot has 64; shorten the audio"):
        engine.submit(long)
    assert engine.pending == 0


def test_the_ends_of_the_range_are_taken(model, want):
    """Keys, seeds and numbers of best ids as large and as small as int64 holds stand beside other requests."""
    low, high = -(1 << 63), (1 << 63) - 1
    engine = Engine(model, allowed=ALLOWED, slots=8, max_len=128, max_new_tokens=20)
    plain = requests(make_batch(), 20)
    odd = [
        replace(plain[1], key=key, sampling=Sampling(temperature=1.0, top_k=high, seed=seed)) for key, seed in ((low, high), (high, low))
    ]
    ids = [engine.submit(request) for request in [*plain, *odd]]
    found = drained(engine)
    assert [found[i].tokens for i in ids[:5]] == want
    assert all(found[i].finish_reason != "error" for i in ids)


def test_a_rollout_does_not_mix_with_requests(model):
    engine = Engine(model, allowed=ALLOWED, slots=2, max_len=128, max_new_tokens=20)
    engine.submit(requests(make_batch(), 20)[0])
    with pytest.raises(RuntimeError, match="1 submitted requests are under way"):
        engine.rollout(make_batch(), max_new_tokens=4)
    engine.close()
    assert engine.pending == 0
    assert engine.rollout(alone(make_batch(), 0), max_new_tokens=4).lens.tolist() == [4]


def test_no_more_rows_are_used_than_were_asked_for(model):
    """Slots that grew for longer prompts keep their number of rows, and a small rollout after a large one uses its own."""
    engine = Engine(model, allowed=ALLOWED)
    engine.rollout(make_batch(), max_new_tokens=4)
    engine.rollout(alone(make_batch([300]), 0), max_new_tokens=8)
    assert (engine._slots.cache.rows, engine._slots.most) == (5, 1)
