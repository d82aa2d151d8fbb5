"""Log-probabilities of chosen ids against torch's log_softmax over the whole product."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from arkfast.kernels import linear_log_softmax

INF = float("inf")


def example(positions: int = 11, features: int = 12, vocabulary: int = 40, width: int = 5) -> tuple[torch.Tensor, ...]:
    """Logits of standard deviation 1; ids with repeats and holes, none of them ≥ vocabulary − 5."""
    ids = torch.randint(-1, vocabulary - 5, (positions, width))
    ids[0, :2] = 3
    return torch.randn(positions, features), torch.randn(vocabulary, features) / features**0.5, ids


def dense(hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, tau: float, blocked: torch.Tensor | None):
    logits = hidden @ weight.t() / tau
    if blocked is not None:
        logits = logits.index_fill(1, blocked.long(), -INF)
    return logits.log_softmax(1).gather(1, ids.clamp_min(0)) * (ids >= 0), logits.logsumexp(1)


@pytest.mark.parametrize("tau", [1.0, 2.5])
@pytest.mark.parametrize("blocked", [None, torch.tensor([39, 36], dtype=torch.int32)])
@pytest.mark.parametrize("chunk_rows", [None, 1, 4])
def test_equals_dense_in_float64(backend, tau, blocked, chunk_rows):
    hidden, weight, ids = example()
    mine = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    true = hidden.double().requires_grad_(), weight.double().requires_grad_()
    settings = {"tau": tau, "blocked": blocked}
    logp, lse = linear_log_softmax(*mine, ids, return_lse=True, chunk_rows=chunk_rows, backend=backend, **settings)
    want, want_lse = dense(*true, ids, **settings)
    g, g_lse = torch.randn(ids.shape), torch.randn(len(ids))
    ((logp * g).sum() + (lse * g_lse).sum()).backward()
    ((want * g).sum() + (want_lse * g_lse).sum()).backward()
    assert logp.dtype == lse.dtype == torch.float32
    # Values of order 4: two ulps of 4·2⁻²³ each for the logit and the log-sum-exp.
    torch.testing.assert_close(logp.double(), want, rtol=0, atol=2e-6)
    torch.testing.assert_close(lse.double(), want_lse, rtol=0, atol=1e-6)
    for a, b in zip(mine, true, strict=True):
        assert (a.grad.double() - b.grad).norm() <= 1e-6 * b.grad.norm()
    if blocked is not None:
        assert not mine[1].grad[blocked.long()].any()


def test_cross_entropy_of_targets(backend):
    hidden, weight, ids = example(width=1)
    ids = ids.clamp_min(0)
    got = -linear_log_softmax(hidden, weight, ids, backend=backend).mean()
    torch.testing.assert_close(got, F.cross_entropy(hidden @ weight.t(), ids[:, 0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("output", ["logp", "lse"])
def test_gradcheck(backend, output):
    hidden, weight, ids = example(4, 3, 9, 2)
    inputs = hidden.double().requires_grad_(), weight.double().requires_grad_()

    def run(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        logp, lse = linear_log_softmax(h, w, ids, tau=1.3, blocked=torch.tensor([8]), return_lse=True, chunk_rows=3, backend=backend)
        return logp if output == "logp" else lse

    torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=2)))
def test_each_subset_of_requires_grad(backend, wanted):
    hidden, weight, ids = example()
    full = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    linear_log_softmax(*full, ids, backend=backend).sum().backward()
    some = [x.clone().requires_grad_(w) for x, w in zip((hidden, weight), wanted, strict=True)]
    logp = linear_log_softmax(*some, ids, backend=backend)
    assert logp.requires_grad == any(wanted)
    if any(wanted):
        logp.sum().backward()
    for x, reference, w in zip(some, full, wanted, strict=True):
        assert (x.grad is not None) == w
        assert not w or torch.equal(x.grad, reference.grad)


def test_empty_slots_and_blocked_targets_carry_no_gradient(backend):
    hidden, weight, _ = example(3)
    ids = torch.tensor([[-1, -1], [7, -1], [38, 38]])
    hidden = hidden.requires_grad_()
    logp = linear_log_softmax(hidden, weight, ids, blocked=torch.tensor([38, 100]), backend=backend)
    logp[:2].sum().backward(retain_graph=True)
    assert logp[0].tolist() == [0, 0]
    assert logp[2].tolist() == [-INF, -INF]
    assert hidden.grad.any(1).tolist() == [False, True, False]
    hidden.grad = None
    logp[2].sum().backward()
    assert not hidden.grad.any()


def test_bfloat16_inputs_are_summed_in_float32(backend):
    hidden, weight, ids = example()
    hidden, weight = hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_()
    logp = linear_log_softmax(hidden, weight, ids, backend=backend)
    logp.sum().backward()
    wide = hidden.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    want = linear_log_softmax(*wide, ids, backend=backend)
    want.sum().backward()
    assert torch.equal(logp, want)
    assert torch.equal(hidden.grad, wide[0].grad.bfloat16())
    assert torch.equal(weight.grad, wide[1].grad.bfloat16())


def test_empty_batch_has_a_live_graph(backend):
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    logp = linear_log_softmax(hidden, weight, torch.zeros(0, 2, dtype=torch.int32), backend=backend)
    logp.sum().backward()
    assert logp.shape == (0, 2)
    assert hidden.grad.shape == (0, 4)
    assert not weight.grad.any()


def test_autocast_does_not_narrow(backend):
    hidden, weight, ids = example()
    want = linear_log_softmax(hidden, weight, ids, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear_log_softmax(hidden, weight, ids, backend=backend), want)
