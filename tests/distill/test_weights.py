"""Weights of positions: in the sum, in its gradient and in what divides it, whatever the objective."""

from __future__ import annotations

import pytest
import torch
from distill_batches import ALLOWED, make_batch

from arkfast.distill import Objective, Weights
from arkfast.distill.losses import opd_loss
from arkfast.distill.sequence import encoded
from arkfast.distill.teachers.arkasr import ArkasrTeacher
from arkfast.engine import Engine
from arkfast.records import Rollout
from arkfast.testing import tiny_model

OBJECTIVES = {
    "union": Objective(),
    "tail": Objective(divergence="jsd", tail=True),
    "full": Objective(divergence="reverse_kl", support="full"),
    "sampled": Objective(kind="policy_gradient"),
}


def test_weights_by_hand() -> None:
    rollout = Rollout(
        tokens=torch.zeros(2, 3, dtype=torch.int64), lens=torch.tensor([3, 2]), stopped=torch.tensor([True, False]), owner=torch.arange(2)
    )
    assert Weights().of(rollout) is None
    weights = Weights(end=4.0, decay=0.5).of(rollout)
    assert weights is not None
    assert weights.tolist() == [1.0, 0.5, 1.0, 1.0, 0.5], "the second row was cut and has no end"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_weighted_loss_is_the_weighted_sum_of_its_positions(name: str) -> None:
    """Each position's own loss is what is left where all others weigh nothing."""
    objective, student, batch = OBJECTIVES[name], tiny_model(seed=1), make_batch()
    engine = Engine(student, allowed=ALLOWED, topk=6)
    teacher = ArkasrTeacher(
        tiny_model(seed=2), allowed=ALLOWED, top_k=6, lse_temperature=1.0 if objective.needs_lse else None,
        sampled=objective.needs_sampled, states=objective.needs_states,
    )  # fmt: skip
    rollout = engine.rollout(batch, max_new_tokens=4, temperature=1.0)
    scores, n = teacher.score(batch, rollout), int(rollout.lens.sum())

    class Given(Weights):
        def of(self, _: Rollout) -> torch.Tensor:
            return given

    def loss(weights: Weights) -> tuple[float, float, torch.Tensor]:
        found = opd_loss(
            student, batch, encoded(student, batch), rollout, scores, tau=1.0, objective=objective, weights=weights,
            blocked=engine.blocked, allowed=ALLOWED,
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(found.total, student.lm_head.weight)
        return float(found.total.detach()), float(found.count), gradient

    each = []
    for i in range(n):
        given = torch.zeros(n).index_fill(0, torch.tensor(i), 1.0)
        each.append(loss(Given()))
    wanted = Weights(end=3.0, decay=0.8)
    factors = wanted.of(rollout)
    assert factors is not None
    assert len(factors.unique()) > 3
    total, count, gradient = loss(wanted)
    assert total == pytest.approx(sum(w * one for w, (one, _, _) in zip(factors.tolist(), each, strict=True)), rel=1e-5, abs=1e-5)
    assert count == pytest.approx(float(factors.sum()))
    together = torch.stack([g for _, _, g in each])
    torch.testing.assert_close(gradient, (factors[:, None, None] * together).sum(0), rtol=1e-4, atol=1e-5)
    plain = loss(Weights())
    assert plain[0] == pytest.approx(sum(one for one, _, _ in each), rel=1e-5, abs=1e-5)
    assert plain[1] == n
