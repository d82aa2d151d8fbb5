"""Requests that are watched while they are decoded, and audio embeddings that go in and out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from engine_batches import ALLOWED, distinct, make_batch, requests

from arkfast.engine import Engine, Finished, Request
from arkfast.models.arkasr.modeling import ArkasrForConditionalGeneration
from arkfast.records import InputError
from arkfast.testing import tiny_model

TOKENS = 20


@pytest.fixture(scope="module")
def model() -> ArkasrForConditionalGeneration:
    return tiny_model(seed=1)


def engine_of(model: ArkasrForConditionalGeneration, slots: int = 2, **options: object) -> Engine:
    return Engine(model, allowed=ALLOWED, slots=slots, max_len=128, max_new_tokens=TOKENS, **options)


def followed(engine: Engine) -> tuple[dict[int, Finished], dict[int, list[list[int]]]]:
    """What every request came to, and what was told of it after each step."""
    found: dict[int, Finished] = {}
    told: dict[int, list[list[int]]] = {}
    while engine.pending:
        found |= {finished.id: finished for finished in engine.step()}
        for id_, tokens in engine.progress().items():
            assert id_ not in found
            told.setdefault(id_, []).append(list(tokens))
    return found, told


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(("slots", "look_every"), [(1, 1), (2, 2), (5, 8)])
def test_what_is_told_grows_and_is_never_taken_back(
    model: ArkasrForConditionalGeneration, slots: int, look_every: int, overlap: bool
) -> None:
    plain = engine_of(model, slots, look_every=look_every)
    want = [plain.submit(request) for request in requests(make_batch(), TOKENS)]
    tokens, nothing = followed(plain)
    assert nothing == {}, "nobody is watched unasked"
    assert distinct([tokens[i].tokens for i in want]) >= 10
    watching = engine_of(model, slots, look_every=look_every, overlap=overlap)
    ids = [watching.submit(replace(request, watched=n != 1)) for n, request in enumerate(requests(make_batch(), TOKENS))]
    found, told = followed(watching)
    assert [found[i] for i in ids] == [tokens[i] for i in want]
    assert ids[1] not in told
    for i in (ids[0], *ids[2:]):
        lengths = [len(seen) for seen in told.get(i, [])]
        assert lengths == sorted(lengths)
        assert all(seen == found[i].tokens[: len(seen)] for seen in told.get(i, []))
    assert max(len(seen) for seen in told.values()) >= (3 if look_every < 8 else 1)
    assert watching.progress() == {}


@pytest.mark.parametrize("overlap", [False, True])
def test_nothing_of_a_loop_that_is_cut_was_told(
    model: ArkasrForConditionalGeneration, monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    """With loops of two equal ids in a row of two, many transcripts are cut short, and what was told stands in them."""
    from arkfast.engine import guards

    for name, value in (("LONGEST_PERIOD", 2), ("REPEATS", 1), ("LOOP_TOKENS", 2), ("LOOP_WINDOW", 2)):
        monkeypatch.setattr(guards, name, value)
    engine = engine_of(model, cut_loops=True, look_every=4, overlap=overlap)
    ids = [engine.submit(replace(request, watched=True)) for request in requests(make_batch(), TOKENS)]
    found, told = followed(engine)
    assert any(found[i].finish_reason == "repetition" for i in ids)
    for i, seen in told.items():
        assert seen[-1] == found[i].tokens[: len(seen[-1])]


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Calls of a block in which a GPU would make the host wait."""
    calls: list[str] = []
    for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "nonzero"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, *a, _o=original, _n=name, **k: calls.append(_n) or _o(self, *a, **k))
    with monkeypatch.context():
        yield calls
    monkeypatch.undo()


@pytest.mark.parametrize("watched", [False, True])
def test_watching_costs_no_wait_for_the_device(
    model: ArkasrForConditionalGeneration, monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    """Between two looks at which nothing ends there is one wait, with a watched row or without."""
    engine = engine_of(model, slots=5, look_every=1)
    for request in requests(make_batch(), TOKENS):
        engine.submit(replace(request, watched=watched))
    engine.step()
    with counted(monkeypatch) as calls:
        assert engine.step() == []
        assert len(engine.progress()) == (5 if watched else 0)
    assert calls == ["tolist"]


def test_a_cancelled_request_is_told_no_further(model: ArkasrForConditionalGeneration) -> None:
    engine = engine_of(model, slots=5, look_every=1)
    ids = [engine.submit(replace(request, watched=True)) for request in requests(make_batch(), TOKENS)]
    engine.step()
    assert set(engine.progress()) == set(ids)
    engine.cancel(ids[2])
    engine.step()
    assert set(engine.progress()) == set(ids) - {ids[2]}


@pytest.mark.parametrize("overlap", [False, True])
def test_embeddings_that_came_out_go_in_again(
    model: ArkasrForConditionalGeneration, monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    kept: dict[int, torch.Tensor] = {}

    def keep(n: int, audio: torch.Tensor) -> None:
        kept[n] = audio.clone()

    first = engine_of(model, overlap=overlap)
    batch = make_batch()
    asked = [replace(request, encoded=lambda audio, n=n: keep(n, audio)) for n, request in enumerate(requests(batch, TOKENS))]
    ids = [first.submit(request) for request in asked]
    want, _ = followed(first)
    assert sorted(kept) == [0, 1, 2, 3, 4]
    monkeypatch.setattr(model, "get_audio_features", None)  # nothing is encoded any more
    again = engine_of(model, overlap=overlap)
    known = [replace(request, mel=None, audio=kept[n]) for n, request in enumerate(requests(batch, TOKENS))]
    got = [again.submit(request) for request in known]
    found, _ = followed(again)
    assert [found[i].tokens for i in got] == [want[i].tokens for i in ids]


def test_embeddings_that_do_not_fit_are_refused(model: ArkasrForConditionalGeneration) -> None:
    engine, request = engine_of(model), requests(make_batch(), TOKENS)[0]
    wanted = model.audio_input.token_count(request.mel.shape[1]), model.config.hidden_size
    sound = torch.zeros(*wanted)

    def refused(changed: Request, match: str) -> None:
        with pytest.raises(InputError, match=match):
            engine.submit(changed)

    refused(replace(request, audio=sound), "give one of the two")
    for audio in (sound[1:], sound[:, 1:], sound.double()):
        refused(replace(request, mel=None, audio=audio), "needs embeddings")
    assert engine.pending == 0
