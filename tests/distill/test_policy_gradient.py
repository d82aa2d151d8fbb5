"""The policy gradient is, on average, the gradient of the reverse divergence, with a control variate and without."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from distill_batches import ALLOWED, make_batch

from arkfast.distill import opd_step
from arkfast.distill.objective import Kind, Objective
from arkfast.distill.policy_gradient import policy_gradient
from arkfast.distill.teachers.arkasr import ArkasrTeacher
from arkfast.engine import Engine
from arkfast.records import AllowedTokens, InputError, Rollout, TeacherScores
from arkfast.testing import tiny_model

SMALL = AllowedTokens(ranges=((0, 11),), stop_ids=(13,))
V, HIDDEN, K = 15, 5, 4
IDS = [*range(11), 13]


class World:
    """One position of two heads over 12 ids, in float64, repeated for each id that may be drawn there."""

    def __init__(self, *, same: bool = False, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.hidden = torch.randn(1, HIDDEN, generator=generator, dtype=torch.float64)
        self.weight = torch.randn(V, HIDDEN, generator=generator, dtype=torch.float64)
        # The teacher of a student that it knows: near, and not the same.
        states = self.hidden + 0.3 * (not same) * torch.randn(1, HIDDEN, generator=generator, dtype=torch.float64)
        head = self.weight + 0.3 * (not same) * torch.randn(V, HIDDEN, generator=generator, dtype=torch.float64)
        self.hidden.requires_grad_()
        self.weight.requires_grad_()
        out = ~SMALL.mask(V)
        self.z = (self.hidden @ self.weight.T).masked_fill(out, float("-inf"))[0]
        self.t = (states @ head.T).masked_fill(out, float("-inf"))[0]

    def said(self, token: int) -> tuple[Rollout, TeacherScores]:
        ours, theirs = self.z.detach().topk(K), self.t.topk(K)
        one = torch.ones(1, dtype=torch.int64)
        rollout = Rollout(
            tokens=torch.tensor([[token]]), lens=one, stopped=one.bool(), owner=0 * one, topk_ids=ours.indices[None].int(), total=1
        )
        scores = TeacherScores(
            ids=theirs.indices[None].int(), scores=theirs.values[None], student_scores=self.t[ours.indices][None], valid=one.bool(),
            lse=self.t.logsumexp(0)[None], sampled_scores=self.t[token][None],
        )  # fmt: skip
        return rollout, scores

    def gradient(self, token: int, kind: Kind = "policy_gradient", *, control_variate: bool = True) -> torch.Tensor:
        """[H + V · H] of the loss where this token was drawn."""
        objective = Objective(kind=kind, control_variate=control_variate)
        found = policy_gradient(objective, self.hidden, self.weight, *self.said(token), blocked=SMALL.blocked(V), allowed=SMALL)
        return torch.cat([g.flatten() for g in torch.autograd.grad(found.total, (self.hidden, self.weight))])

    def mean_and_variance(self, kind: Kind = "policy_gradient", *, control_variate: bool = True) -> tuple[torch.Tensor, float]:
        """Over the token that is drawn, by adding up every one with its probability."""
        q = self.z.detach().softmax(0)[IDS]
        each = torch.stack([self.gradient(token, kind, control_variate=control_variate) for token in IDS])
        mean = (q[:, None] * each).sum(0)
        return mean, float((q[:, None] * (each - mean) ** 2).sum())

    def dense(self) -> torch.Tensor:
        """The gradient of KL(q‖p) from the definition."""
        p, q = self.t.softmax(0)[IDS], self.z.softmax(0)[IDS]
        total = (q * (q / p).log()).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(total, (self.hidden, self.weight), retain_graph=True)])


def test_on_average_it_is_the_gradient_of_the_reverse_divergence_and_a_control_variate_takes_noise_alone() -> None:
    noises = []
    for seed in range(20):
        world = World(seed=seed)
        want = world.dense()
        plain, noise = world.mean_and_variance(control_variate=False)
        mean, less = world.mean_and_variance()
        torch.testing.assert_close(plain, want, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(mean, want, rtol=1e-9, atol=1e-12)
        assert float(want.norm()) > 0.01
        noises.append((noise, less))
    # Not at every position: the best b weighs tokens by the size of their gradients. Over positions it pays, here by 9 %.
    assert sum(less for _, less in noises) < 0.95 * sum(noise for noise, _ in noises)


def test_a_fixed_advantage_teaches_nothing_on_average_and_is_not_nothing() -> None:
    world = World()
    mean, noise = world.mean_and_variance("fixed_advantage")
    assert float(mean.abs().max()) < 1e-12
    assert noise > 0.1


def test_equal_models_have_no_gradient_whatever_was_drawn() -> None:
    world = World(same=True)
    assert max(float(world.gradient(token).abs().max()) for token in IDS) < 1e-12


def test_the_advantage_is_told_by_hand_and_a_constant_added_to_scores_changes_nothing() -> None:
    world = World()
    token = IDS[3]
    rollout, scores = world.said(token)
    log_q = world.z.log_softmax(0)[token]
    advantage = (world.t.log_softmax(0)[token] - log_q).detach()
    limits = {"blocked": SMALL.blocked(V), "allowed": SMALL}
    plain = Objective(kind="policy_gradient", control_variate=False)
    found = policy_gradient(plain, world.hidden, world.weight, rollout, scores, **limits)
    torch.testing.assert_close(found.total, -advantage * log_q)
    moved = {name: getattr(scores, name) + 9 for name in ("scores", "student_scores", "lse", "sampled_scores")}
    for objective in (plain, Objective(kind="policy_gradient")):
        before, after = (
            policy_gradient(objective, world.hidden, world.weight, rollout, x, **limits).total for x in (scores, replace(scores, **moved))
        )
        torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)


def test_what_the_teacher_could_not_score_is_left_out_and_a_teacher_without_probabilities_is_named() -> None:
    world = World()
    rollout, scores = world.said(IDS[0])
    limits = {"blocked": SMALL.blocked(V), "allowed": SMALL}
    unseen = replace(scores, sampled_scores=torch.full((1,), float("-inf"), dtype=torch.float64))
    for left_out in (unseen, replace(scores, valid=torch.zeros(1, dtype=torch.bool))):
        found = policy_gradient(Objective(kind="policy_gradient"), world.hidden, world.weight, rollout, left_out, **limits)
        assert (float(found.total.detach()), found.valid.tolist()) == (0.0, [False])
        assert not any(bool(g.any()) for g in torch.autograd.grad(found.total, (world.hidden, world.weight)))
    with pytest.raises(InputError, match="--opd_objective policy_gradient: the teacher reports no probability"):
        policy_gradient(Objective(kind="policy_gradient"), world.hidden, world.weight, rollout, replace(scores, lse=None), **limits)


def test_a_step_with_a_teacher() -> None:
    """The teacher reports the produced tokens' scores; the loss is the sum of −A log q over them."""
    student, batch = tiny_model(seed=1), make_batch()
    engine = Engine(student, allowed=ALLOWED, topk=8)
    teacher = ArkasrTeacher(tiny_model(seed=2), allowed=ALLOWED, top_k=8, lse_temperature=1.0, sampled=True)
    drawn = {"temperature": 1.0, "seed": 5, "n": 2, "max_new_tokens": 6}
    objective = Objective(kind="policy_gradient", control_variate=False)
    loss = opd_step(student, engine, teacher, batch, tau=1.0, objective=objective, **drawn)
    rollout = engine.rollout(batch, **drawn)
    scores = teacher.score(batch, rollout)
    assert rollout.logprob is None or len(rollout.logprob) == int(rollout.lens.sum())
    assert scores.sampled_scores is not None
    assert scores.lse is not None
    of_student = ArkasrTeacher(tiny_model(seed=1), allowed=ALLOWED, top_k=8, lse_temperature=1.0, sampled=True).score(batch, rollout)
    assert of_student.sampled_scores is not None
    assert of_student.lse is not None
    log_p, log_q = (x.sampled_scores - x.lse for x in (scores, of_student))
    torch.testing.assert_close(loss.total.detach(), (-(log_p - log_q) * log_q).sum(), rtol=1e-4, atol=1e-4)
    assert float(loss.count) == float(rollout.lens.sum()) > 10
    loss.total.backward()
    assert student.lm_head.weight.grad is not None
    assert bool(student.lm_head.weight.grad.isfinite().all())
