"""Draws over a vocabulary as large as the published one: only what may be drawn is."""

import pytest
import torch

from arkfast.engine import Sampling
from arkfast.engine.rows import FAILED, Choosing, Mode, Rows
from arkfast.engine.sampling import _BITS, _gumbel, gumbel_noise, noisiest, step_seed

V = 151_936
HIGHEST = {37: 134_765, 597: 125_330, 689: 93_993, 746: 78_539, 818: 88_987, 936: 16_564}
"""Keys whose first draw under seed 1 has an id of the highest noise there is, and that id: one row in a hundred has."""


def test_all_noise_is_finite():
    ends = _gumbel(torch.tensor([0, 1, 2**_BITS - 2, 2**_BITS - 1]))
    assert torch.isfinite(ends).all()
    assert (ends.diff() > 0).all(), "the ends are numbers of their own, not rounded to their neighbours"
    exact = torch.tensor([2.0**-24, 1 - 2.0**-24], dtype=torch.float64)
    torch.testing.assert_close(ends[[0, -1]].double(), -(-exact.log()).log(), atol=1e-5, rtol=0)


def test_what_may_not_be_drawn_is_not_whatever_its_noise():
    scores = torch.tensor([[float("-inf"), -50.0, float("-inf")]])
    for noise in (float("inf"), float("-inf"), float("nan"), 1e30):
        assert noisiest(scores, torch.tensor([[noise, 0.0, noise]])).tolist() == [1]


def test_no_two_steps_of_any_runs_have_one_seed():
    """Not those of seeds that follow each other one step apart, as with a sum."""
    seeds = (0, 1, 2, 3, 1000, 2**63 - 2, 2**63 - 1)
    found = [step_seed(seed, step) for seed in seeds for step in range(2000)]
    assert len(set(found)) == len(found)
    assert all(-(2**63) <= value < 2**63 for value in found)
    assert not set(found) & set(range(3000)), "nor the seed of a run as it is given"
    assert step_seed(1, 7) == step_seed(1, 7)


def test_steps_draw_independently():
    """Noise at one place under neighbouring pairs: nothing in common beyond chance, which is 1/√n."""
    key = torch.tensor([5])
    noise = torch.cat([gumbel_noise(key, key * 0, 0, 20_000, step_seed(seed, step)) for seed in (1, 2, 3) for step in (0, 1, 2)])
    correlation = torch.corrcoef(noise)
    assert (correlation - torch.eye(len(noise))).abs().max() < 5 / 20_000**0.5


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(temperature=1.0, seed=1), 1000),
        (Sampling(temperature=1.0, seed=1, top_k=1), V),
        (Sampling(temperature=1.0, seed=1, top_p=0.5), V),
    ],
    ids=["blocked", "top_k", "top_p"],
)
def test_the_highest_noise_does_not_reach_past_a_restriction(sampling, allowed):
    """One id has nearly all probability, and another, left out of the draw, the highest noise."""
    keys = torch.tensor(list(HIGHEST))
    noise = gumbel_noise(keys, torch.zeros_like(keys), 0, V, 1)
    assert noise.argmax(-1).tolist() == list(HIGHEST.values())
    assert torch.equal(noise.amax(-1), _gumbel(torch.full((len(keys),), 2**_BITS - 1)))
    rows = Rows.empty(len(keys), 4, topk=0, logprobs=False, device=torch.device("cpu"))
    for field, value in (
        (rows.state, 0), (rows.key, keys), (rows.seed, sampling.seed), (rows.limit, 4), (rows.temperature, sampling.temperature),
        (rows.top_k, sampling.top_k), (rows.top_p, sampling.top_p),
    ):  # fmt: skip
        field.copy_(torch.as_tensor(value))
    logits = torch.full((len(keys), V), -30.0)
    logits[:, 7] = 30.0
    choosing = Choosing(width=V, blocked=torch.arange(allowed, V, dtype=torch.int32), stop_ids=torch.tensor([5]), topk=0, logprobs=False)
    rows.choose(logits, Mode.of([sampling]), choosing)
    assert rows.tokens[:, 0].tolist() == [7] * len(keys)
    assert not (rows.state & FAILED).any()
