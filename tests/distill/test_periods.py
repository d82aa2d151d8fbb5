"""Answers whose positions take turns in ranges of ids, through every stage: dense masks by hand are the definition."""

import torch
from distill_batches import make_batch
from test_steps import assert_same_gradients, dense_logits

from arkfast.distill import opd_step, sft_step, td_step
from arkfast.distill.teachers.arkasr import ArkasrTeacher
from arkfast.engine import Engine
from arkfast.records import AllowedTokens
from arkfast.testing import tiny_model

PERIOD = ((0, 30), (30, 60), (60, 90))
TURNS = AllowedTokens(ranges=((0, 90),), stop_ids=(95,), period=PERIOD)


def outside(place: torch.Tensor) -> torch.Tensor:
    """[N, 97] True where an id may not stand at a position."""
    mask = torch.ones(len(place), 97, dtype=torch.bool)
    for row, t in enumerate(place.tolist()):
        start, stop = PERIOD[t % 3]
        mask[row, start:stop] = False
        if t % 3 == 0:
            mask[row, 95] = False
    return mask


def test_references_are_learnt_over_the_ids_of_their_turn():
    model, batch = tiny_model(seed=1), make_batch(targets=((3, 40, 70, 95), (95,), (9, 31, 62, 12, 33, 88, 95)))
    loss = sft_step(model, Engine(model, allowed=TURNS), batch)
    place = torch.cat([torch.arange(n) for n in batch.target_lens.tolist()])
    logits = dense_logits(model, batch, batch.target_ids, batch.target_lens).masked_fill(outside(place), float("-inf"))
    targets = torch.cat([row[:n] for row, n in zip(batch.target_ids, batch.target_lens, strict=True)])
    reference = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    torch.testing.assert_close(loss.total, reference, rtol=1e-5, atol=0)
    assert_same_gradients(model, loss.total, reference)


def test_a_teachers_transcripts_keep_to_their_turns():
    student, batch = tiny_model(seed=1), make_batch()
    teacher = ArkasrTeacher(tiny_model(seed=2), allowed=TURNS, top_k=8)
    labels = teacher.transcribe(batch, max_new_tokens=9)
    _, place = labels.packed_index()
    said = torch.cat([row[:n] for row, n in zip(labels.tokens, labels.lens.tolist(), strict=True)])
    assert not outside(place)[torch.arange(len(said)), said].any()
    assert len(set(said.tolist())) >= 6
    loss = td_step(student, Engine(student, allowed=TURNS), teacher, batch, max_new_tokens=9)
    logits = dense_logits(student, batch, labels.tokens, labels.lens).masked_fill(outside(place), float("-inf"))
    torch.testing.assert_close(loss.total, torch.nn.functional.cross_entropy(logits, said, reduction="sum"), rtol=1e-5, atol=0)


def test_the_union_holds_only_ids_of_a_positions_turn():
    student, batch = tiny_model(seed=1), make_batch()
    engine, teacher = Engine(student, allowed=TURNS, topk=8), ArkasrTeacher(tiny_model(seed=2), allowed=TURNS, top_k=8)
    rollout = engine.rollout(batch, max_new_tokens=7, temperature=1.0, seed=3, n=2)
    scores = teacher.score(batch, rollout)
    _, place = rollout.packed_index()
    barred = outside(place)
    for ids in (rollout.topk_ids, scores.ids):
        assert (ids >= 0).sum(1).min() == 8
        assert not barred.gather(1, ids.long()).any()
    repeated = {name: getattr(batch, name)[rollout.owner] for name in ("keys", "mel", "mel_lens", "input_ids", "prompt_lens")}
    whole = type(batch)(ids=tuple(map(str, range(6))), **repeated)
    dense = dense_logits(teacher.model, whole, rollout.tokens, rollout.lens).masked_fill(barred, float("-inf"))
    torch.testing.assert_close(scores.scores, dense.topk(8).values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.student_scores, dense.gather(1, rollout.topk_ids.long()), rtol=1e-5, atol=1e-5)
    loss = opd_step(student, engine, teacher, batch, tau=1.0, max_new_tokens=7)
    assert torch.isfinite(loss.total)
    assert loss.total > 0
