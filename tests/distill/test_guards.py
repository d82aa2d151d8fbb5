"""Guards leave exactly the positions out that they are for, and count the rows; an empty rollout is learnt as it was chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from distill_batches import ALLOWED, make_batch

from arkfast.distill import Guards, metric_names, opd_step
from arkfast.distill.guards import guarded
from arkfast.distill.losses import cross_entropy_loss, opd_loss
from arkfast.distill.references import references
from arkfast.distill.sequence import encoded
from arkfast.distill.teachers.arkasr import ArkasrTeacher
from arkfast.engine import Engine
from arkfast.engine.guards import LOOP_TOKENS, REPEATS
from arkfast.records import Rollout, TeacherScores
from arkfast.testing import tiny_model

END = 95


def of_rows(rows: list[list[int]], stopped: list[bool], owner: list[int] | None = None) -> tuple[Rollout, TeacherScores]:
    lens = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(lens.max()), dtype=torch.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    n = int(lens.sum())
    lists = torch.arange(n * 4, dtype=torch.int32).reshape(n, 4) % 90
    rollout = Rollout(
        tokens=tokens, lens=lens, stopped=torch.tensor(stopped), owner=torch.tensor(owner or range(len(rows))), topk_ids=lists, total=n
    )
    scores = TeacherScores(ids=lists, scores=torch.randn(n, 4), student_scores=torch.randn(n, 4), valid=torch.ones(n, dtype=torch.bool))
    return rollout, scores


def kept(guards: Guards, rollout: Rollout, scores: TeacherScores, batch: Any = None) -> tuple[list[list[bool]], Any, Any]:
    found, counters = guarded(guards, batch or make_batch(), rollout, scores)
    assert tuple(counters) == guards.counters
    rows = [part.tolist() for part in found.valid.split(rollout.lens.tolist())]
    return rows, found.by_reference, {name: float(total) for name, (total, _) in counters.items()}


def test_nothing_is_guarded_against_by_default() -> None:
    rollout, scores = of_rows([[END], [5], [6, END]], [True, False, True])
    rows, learnt, counters = kept(Guards(), rollout, scores)
    assert (rows, learnt, counters) == ([[True], [True], [True, True]], (), {})


@pytest.mark.parametrize(("empty", "learnt"), [("skip", ()), ("reference", (0,))])
def test_an_empty_rollout_is_one_that_ended_at_once(empty: Any, learnt: tuple[int, ...]) -> None:
    """The second row was cut after its first token, and the last one's reference is not there."""
    rollout, scores = of_rows([[END], [5], [6, END], [END]], [True, False, True, True])
    batch = make_batch((37, 96, 61, 40), ((3, 4, END), (7, END), (9, END), ()))
    assert kept(Guards(empty=empty), rollout, scores, batch) == (
        [[False], [True], [True, True], [False]], learnt, {"guarded_empty_rows": 2.0},
    )  # fmt: skip


def test_a_reference_is_learnt_once_for_each_empty_rollout_and_never_beside_the_teachers_own() -> None:
    rollout, scores = of_rows([[END], [END], [5, END], [END]], [True] * 4, owner=[0, 0, 1, 2])
    left_out = torch.tensor([True, True, True, True, False])  # the teacher leaves out what it has learnt by its reference
    rows, learnt, _ = kept(Guards(empty="reference"), rollout, replace(scores, by_reference=(2,), valid=left_out))
    assert learnt == (2, 0, 0)
    _, learnt, counters = kept(Guards(empty="reference"), rollout, replace(scores, valid=~left_out))
    assert (learnt, counters) == ((2,), {"guarded_empty_rows": 3.0}), "rows that the teacher skips are not learnt by their references"
    assert rows == [[False], [False], [True, True], [False]]


def test_what_stands_past_a_loop_is_left_out() -> None:
    """A loop is a phrase over and over, of six repeats and 24 tokens at least; the expected place is counted here by hand."""
    phrase, lead = [1, 2, 3, 4, 5], [9, 8, 7]
    assert (REPEATS, LOOP_TOKENS) == (6, 24)
    looped, single = [*lead, *(phrase * 8), END], [*lead, *([6] * 30), END]
    sound = [*lead, *(phrase * 5), END]
    rollout, scores = of_rows([looped, sound, single], [True, True, True])
    rows, _, counters = kept(Guards(loops=True), rollout, scores)
    assert rows[0] == [True] * (3 + 30) + [False] * (10 + 1)
    assert rows[1] == [True] * len(sound)
    assert rows[2] == [True] * (3 + 24) + [False] * (6 + 1)
    assert counters == {"guarded_looped_rows": 2.0}


def test_what_stands_past_a_multiple_of_the_reference_is_left_out() -> None:
    batch = make_batch((37, 96, 61), ((3, 4, END), (7, END), ()))
    rollout, scores = of_rows([[1, 2, 3, 4, 5, 6, END], [1, 2, END], [1] * 9], [True, True, False])
    rows, _, counters = kept(Guards(length_ratio=1.5), rollout, scores, batch)
    assert rows == [[True] * 5 + [False] * 2, [True] * 3, [True] * 9], "⌈1.5 · 3⌉ = 5, 1.5 · 2 = 3, and no reference"
    assert counters == {"guarded_long_rows": 1.0}


class Said(Engine):
    """Says what it is told to."""

    said: Rollout

    def rollout(self, *_: Any, **__: Any) -> Rollout:
        return self.said


def test_a_step_learns_the_reference_in_the_place_of_an_empty_rollout() -> None:
    """The loss, its count and its gradient are those of the other rows' divergence and of the reference's cross-entropy."""
    student, batch = tiny_model(seed=1), make_batch()
    teacher = ArkasrTeacher(tiny_model(seed=2), allowed=ALLOWED, top_k=4)
    engine = Said(student, allowed=ALLOWED, topk=4)
    engine.said, _ = of_rows([[END], [5, 6, END], [7]], [True, True, False])
    guards = Guards(empty="reference", loops=True, length_ratio=2.0)
    loss = opd_step(student, engine, teacher, batch, tau=1.0, guards=guards)
    assert set(loss.metrics) == set(metric_names("opd", guards=guards))
    scores = teacher.score(batch, engine.said)
    others = replace(scores, valid=scores.valid & (engine.said.packed_index()[0] > 0))
    kl = opd_loss(student, batch, encoded(student, batch), engine.said, others, tau=1.0)
    target = references(batch, [0])
    assert target is not None
    words = cross_entropy_loss(student, batch, encoded(student, batch), target, engine.blocked, allowed=ALLOWED)
    assert float(loss.count) == 4 + 3
    torch.testing.assert_close(loss.total, kl.total + words.total, rtol=1e-5, atol=1e-5)
    weight = student.lm_head.weight
    found, want = (torch.autograd.grad(total, weight, retain_graph=True)[0] for total in (loss.total, kl.total + words.total))
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    skipped = opd_step(student, engine, teacher, batch, tau=1.0, guards=Guards(empty="skip"))
    assert float(skipped.count) == 4
    torch.testing.assert_close(skipped.total, kl.total, rtol=1e-5, atol=1e-5)
