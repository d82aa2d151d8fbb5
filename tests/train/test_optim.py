"""Master weights, schedules and the window's normalisation."""

import math

import pytest
import torch

from arkfast.train.config import TrainConfig
from arkfast.train.optim import MasterAdamW, StepResult, learning_rate


def config(**overrides):
    return TrainConfig(**{"stage": "sft", "student_model": "s", "train_data": "t", "output_dir": "o", "learning_rate": 1e-2, **overrides})


def test_schedules():
    warm = config(warmup_steps=10)
    assert [learning_rate(warm, step, 100) for step in (0, 4, 9, 10, 99)] == pytest.approx([1e-3, 5e-3, 1e-2, 1e-2, 1e-2])
    cosine = config(lr_scheduler_type="cosine", min_lr_ratio=0.1, warmup_steps=0)
    assert learning_rate(cosine, 0, 100) == pytest.approx(1e-2)
    assert learning_rate(cosine, 50, 100) == pytest.approx(1e-2 * 0.55)
    assert learning_rate(cosine, 100, 100) == pytest.approx(1e-3)
    wsd = config(lr_scheduler_type="wsd", min_lr_ratio=0.0, wsd_decay_share=0.2, warmup_steps=4)
    assert [learning_rate(wsd, step, 100) for step in (0, 3, 4, 80, 90, 99, 100)] == pytest.approx(
        [2.5e-3, 1e-2, 1e-2, 1e-2, 5e-3, 5e-4, 0.0]
    )
    assert learning_rate(config(lr_scheduler_type="wsd", min_lr_ratio=0.5), 99, 100) == pytest.approx(1e-2 * (0.5 + 0.5 / 20))


def train(dtype, steps=100, lr=1e-6):
    weight = torch.nn.Parameter(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) * 0.02)
    start = weight.detach().clone()
    optimizer = MasterAdamW([("w", weight)], config(weight_decay=0.0), dtype)
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        optimizer.collect()
        optimizer.step(lr, torch.tensor(1.0), torch.tensor(1.0))
    return start, optimizer.masters["w"]


def test_small_updates_are_not_lost_in_bf16():
    """At a rate of 1e-6 a bf16 weight of 0.02 cannot move (its step is 1.2e-4); the master weight does, as the float32 run's."""
    start, moved = train(torch.bfloat16)
    torch.testing.assert_close(start - moved, torch.full_like(start, 100e-6), rtol=0.02, atol=0)
    assert torch.equal(moved, train(torch.float32)[1])


def test_the_model_computes_in_bf16_and_follows_its_masters():
    weight = torch.nn.Parameter(torch.randn(8, 8))
    optimizer = MasterAdamW([("w", weight)], config(), torch.bfloat16)
    assert weight.dtype == torch.bfloat16
    (weight.float() ** 2).sum().backward()
    optimizer.collect()
    assert weight.grad is None
    optimizer.step(1e-2, torch.tensor(1.0), torch.tensor(1.0))
    assert torch.equal(weight, optimizer.masters["w"].to(torch.bfloat16))


def test_gradients_of_a_window_are_divided_once_by_its_count():
    steps = []
    for parts in ([1.0], [0.25, 0.25, 0.25, 0.25]):
        weight = torch.nn.Parameter(torch.ones(3, 3))
        optimizer = MasterAdamW([("w", weight)], config(grad_clip=0), torch.float32)
        for share in parts:
            (weight.sum() * 40 * share).backward()
            optimizer.collect()
        steps.append(StepResult(*optimizer.step(1e-2, torch.tensor(40.0), torch.tensor(80.0)).tolist()))
    assert steps[0] == steps[1]
    assert steps[0].loss == 2.0
    assert steps[0].norm == pytest.approx(3.0)
    assert steps[0].positions == 40.0
    assert steps[0].taken


def test_clipping_and_weight_decay():
    matrix, bias = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    optimizer = MasterAdamW([("m", matrix), ("b", bias)], config(weight_decay=0.5), torch.float32)
    matrix.grad, bias.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step(0.1, torch.tensor(1.0), torch.tensor(0.0))
    assert torch.allclose(matrix, torch.full((2, 2), 0.95))
    assert torch.equal(bias, torch.ones(2)), "biases and norms are not decayed"
    matrix.grad = torch.full((2, 2), 1e6)
    result = StepResult(*optimizer.step(0.1, torch.tensor(1.0), torch.tensor(0.0)).tolist())
    assert (result.loss, result.taken) == (0.0, True)
    assert result.norm == pytest.approx(2e6)


@pytest.mark.parametrize(("gradient", "loss"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_a_number_that_is_not_finite_skips_the_step(gradient, loss):
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = MasterAdamW([("w", weight)], config(), torch.float32)
    weight.grad = torch.full((2, 2), gradient)
    assert StepResult(*optimizer.step(0.1, torch.tensor(1.0), torch.tensor(loss)).tolist()).taken is False
    assert torch.equal(weight, torch.ones(2, 2))
    assert weight.grad is None


def test_a_skipped_step_leaves_no_trace():
    """Weights, moments, step counts and running average after a bad gradient are those of a run that never met it."""

    def run(gradients):
        weight = torch.nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))
        optimizer = MasterAdamW([("w", weight)], config(ema_decay=0.5), torch.bfloat16)
        for gradient in gradients:
            weight.grad = torch.full_like(weight, gradient)
            optimizer.collect()
            optimizer.step(1e-2, torch.tensor(3.0), torch.tensor(1.0))
        return weight, optimizer.state()

    (good, expected), (met, found) = run([0.5, -0.2]), run([math.nan, 0.5, math.inf, -0.2])
    assert torch.equal(good, met)
    assert expected.keys() == found.keys()
    assert "ema/w" in expected
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def test_positions_that_weigh_less_than_one_together_divide_by_what_they_weigh():
    weight = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = MasterAdamW([("w", weight)], config(grad_clip=0), torch.float32)
    weight.grad = torch.full((3, 3), 0.25)
    result = StepResult(*optimizer.step(1e-2, torch.tensor(0.25), torch.tensor(0.5)).tolist())
    assert (result.loss, result.positions, result.taken) == (2.0, 0.25, True)
    assert result.norm == pytest.approx(3.0)
    assert torch.allclose(optimizer.state()["exp_avg/w"], torch.full((3, 3), 0.1))


def test_a_window_without_a_counting_position_changes_nothing():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = MasterAdamW([("w", weight)], config(weight_decay=0.5), torch.float32)
    weight.grad = torch.zeros(2, 2)
    assert StepResult(*optimizer.step(0.1, torch.tensor(0.0), torch.tensor(0.0)).tolist()) == (0.0, 0.0, 0.0)
    assert torch.equal(weight, torch.ones(2, 2))


def test_state_round_trip_and_another_models_state():
    def fresh():
        weight = torch.nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))
        return weight, MasterAdamW([("w", weight)], config(), torch.bfloat16)

    def go(weight, optimizer, steps):
        for i in steps:
            weight.grad = torch.full_like(weight, 0.1 * (i + 1))
            optimizer.collect()
            optimizer.step(1e-2, torch.tensor(1.0), torch.tensor(1.0))

    weight, optimizer = fresh()
    go(weight, optimizer, range(3))
    saved = {key: value.clone() for key, value in optimizer.state().items()}
    go(weight, optimizer, range(3, 6))
    again, resumed = fresh()
    resumed.load_state(saved)
    go(again, resumed, range(3, 6))
    assert torch.equal(optimizer.masters["w"], resumed.masters["w"])
    assert torch.equal(weight, again)
    with pytest.raises(ValueError, match="parameter w"):
        resumed.load_state({"master/other": torch.zeros(4, 4)})
