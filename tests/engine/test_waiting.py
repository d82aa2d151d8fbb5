"""The queue: what is encoded together, in which order rows go on, and how far ahead encoding looks."""

import pytest
import torch
from engine_batches import ALLOWED, make_batch, requests

from arkfast.engine import Engine, prefill, waiting
from arkfast.engine.prefill import Budget
from arkfast.testing import tiny_model

FRAMES = [16, 160, 40, 96, 160, 16, 96, 40, 96, 160, 16, 40]


@pytest.fixture(scope="module")
def model():
    return tiny_model(seed=1)


@pytest.fixture
def seen(monkeypatch):
    """Frames of the clips of each call of the encoder, as the model gets them, and of each call of ``encode``."""
    calls = []
    original = waiting.encode
    monkeypatch.setattr(waiting, "encode", lambda model, mels: calls.append([m.shape[1] for m in mels]) or original(model, mels))
    return calls


def answers(engine, frames):
    """Each clip's ids, and the order in which rows took a slot."""
    ids = [engine.submit(request) for request in requests(make_batch(frames), 6)]
    found, order = {}, []
    while engine.pending:
        for finished in engine.step():
            found[finished.id] = finished.tokens
        order += [e.id for e in engine._slots.entries if e.id not in order] if engine._slots else []
    return [found[i] for i in ids], order


def test_clips_of_the_whole_window_are_grouped(model, seen, monkeypatch):
    """With two slots many slotfuls are encoded at once, in groups of one length each, and every answer is what it is otherwise."""
    want, _ = answers(Engine(model, allowed=ALLOWED, slots=12, max_len=128, max_new_tokens=6), FRAMES)
    groups, original = [], model.get_audio_features

    def noted(mel, lens=None, *, frames):
        groups.append((len(mel), mel.shape[2], set(frames)))
        return original(mel, lens, frames=frames)

    monkeypatch.setattr(model, "get_audio_features", noted)
    monkeypatch.setitem(prefill.ENCODER_FRAMES, "cpu", Budget(16_000, 40))
    got, _ = answers(Engine(model, allowed=ALLOWED, slots=2, max_len=128, max_new_tokens=6), FRAMES)
    assert got == want
    assert seen == [FRAMES, FRAMES]
    assert groups == [(3, 160, {160}), (3, 96, {96}), (3, 40, {40}), (3, 16, {16})], "nothing is padded"


def test_encoding_looks_no_further_than_it_gains(model, seen, monkeypatch):
    """At least a slotful, and otherwise until there are frames enough to choose from."""
    monkeypatch.setitem(waiting.LOOKED_AT, "cpu", 320)
    answers(Engine(model, allowed=ALLOWED, slots=2, max_len=128, max_new_tokens=6), FRAMES)
    assert seen == [[16, 160, 40, 96, 160], [16, 96, 40, 96, 160], [16, 40]]
    del seen[:]
    answers(Engine(model, allowed=ALLOWED, slots=7, max_len=128, max_new_tokens=6), FRAMES)
    assert [len(call) for call in seen] == [7, 5]


def test_slotfuls_keep_their_order(model):
    """However far ahead clips were encoded: the longest of a slotful goes first, and nobody before those of an earlier slotful."""
    _, order = answers(Engine(model, allowed=ALLOWED, slots=4, max_len=128, max_new_tokens=6, look_every=1), FRAMES)
    slotfuls = [order[i : i + 4] for i in (0, 4, 8)]
    assert [sorted(part) for part in slotfuls] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    for part in slotfuls[1:]:  # the first takes its slots all at once, and rows that end move those behind them
        lengths = [FRAMES[i - 1] for i in part]
        assert lengths == sorted(lengths, reverse=True)


def test_features_go_when_they_are_encoded(model):
    queue = waiting.Queue(model)
    for request in requests(make_batch(FRAMES), 6):
        queue.add(waiting.Waiting(prompt=request.input_ids, mel=request.mel, entries=[]))
    with torch.no_grad():
        found = queue._encoded(queue._taken(2), 2, False)
    assert len(found) == len(FRAMES)
    assert all(w.mel is None and w.audio is not None for w in found)
    assert not queue._waiting
