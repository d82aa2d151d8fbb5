"""The few-row head against dense autograd through the whole product."""

from __future__ import annotations

import itertools

import pytest
import torch

from arkfast.kernels import gather_linear


def dense(hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The same scores from the whole [T, V] product."""
    return (hidden @ weight.t()).gather(1, ids.clamp_min(0).long()) * (ids >= 0)


def example(positions: int = 37, features: int = 24, vocabulary: int = 50, width: int = 9) -> tuple[torch.Tensor, ...]:
    """Scores of standard deviation 1; ids with repeats within and across rows, and holes."""
    ids = torch.randint(-1, vocabulary - 10, (positions, width), dtype=torch.int32)
    return torch.randn(positions, features), torch.randn(vocabulary, features) / features**0.5, ids


def test_scores_and_gradients_equal_dense_autograd(backend):
    hidden, weight, ids = example()
    upstream = torch.randn(ids.shape)
    mine = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    true = hidden.double().requires_grad_(), weight.double().requires_grad_()
    scores = gather_linear(*mine, ids, backend=backend)
    want = dense(*true, ids)
    scores.backward(upstream)
    want.backward(upstream.double())
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), want.detach(), rtol=0, atol=1e-6)
    for a, b in zip(mine, true, strict=True):
        # Float32 against float64 in the norm: a sum of at most 37 · 9 terms.
        assert (a.grad.double() - b.grad).norm() <= 1e-6 * b.grad.norm()
    used = torch.zeros(len(weight), dtype=torch.bool)
    used[ids[ids >= 0].long()] = True
    assert not mine[1].grad[~used].any()
    assert not scores[ids < 0].any()


@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=2)))
def test_each_subset_of_requires_grad(backend, wanted):
    hidden, weight, ids = example()
    full = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    gather_linear(*full, ids, backend=backend).square().sum().backward()
    some = [x.clone().requires_grad_(w) for x, w in zip((hidden, weight), wanted, strict=True)]
    scores = gather_linear(*some, ids, backend=backend)
    assert scores.requires_grad == any(wanted)
    if any(wanted):
        scores.square().sum().backward()
    for x, reference, w in zip(some, full, wanted, strict=True):
        assert (x.grad is not None) == w
        assert not w or torch.equal(x.grad, reference.grad)


def test_gradcheck(backend):
    hidden, weight, ids = example(5, 4, 15, 3)
    inputs = hidden.double().requires_grad_(), weight.double().requires_grad_()
    torch.autograd.gradcheck(lambda h, w: gather_linear(h, w, ids, backend=backend), inputs)


@pytest.mark.parametrize(("hidden_dtype", "weight_dtype"), [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_narrow_inputs_are_summed_in_float32(backend, hidden_dtype, weight_dtype):
    hidden, weight, ids = example()
    hidden, weight = hidden.to(hidden_dtype).requires_grad_(), weight.to(weight_dtype).requires_grad_()
    scores = gather_linear(hidden, weight, ids, backend=backend)
    scores.sum().backward()
    wide = hidden.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    want = gather_linear(*wide, ids, backend=backend)
    want.sum().backward()
    # A kernel may add 24 products of one size in another order for another dtype: a few roundings of 2⁻²⁴. Then one rounding at most.
    torch.testing.assert_close(scores, want, rtol=0, atol=1e-6)
    torch.testing.assert_close(hidden.grad.float(), wide[0].grad, rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(weight.grad.float(), wide[1].grad, rtol=2**-8 if weight_dtype == torch.bfloat16 else 0, atol=1e-5)


@pytest.mark.parametrize(("positions", "width"), [(0, 4), (3, 0), (1, 1)])
def test_small_shapes(backend, positions, width):
    hidden, weight = torch.randn(positions, 6, requires_grad=True), torch.randn(8, 6, requires_grad=True)
    scores = gather_linear(hidden, weight, torch.zeros(positions, width, dtype=torch.int64), backend=backend)
    scores.sum().backward()
    assert scores.shape == (positions, width)
    assert hidden.grad.shape == (positions, 6)
    assert weight.grad.any() == (positions * width > 0)


def test_rows_are_independent_across_chunks(backend):
    """In torch more gathered elements than one chunk holds: 300 · 40 · 200 > 2¹⁹. A kernel has a program for each row."""
    positions = 300 if backend == "torch" else 20
    hidden, weight, ids = example(positions, 200, 60, 40)
    whole = gather_linear(hidden, weight, ids, backend=backend)
    torch.testing.assert_close(whole, dense(hidden, weight, ids), rtol=0, atol=1e-5)
    for rows in (slice(0, 1), slice(positions // 3, positions * 2 // 3), slice(positions - 1, positions)):
        assert torch.equal(gather_linear(hidden[rows], weight, ids[rows], backend=backend), whole[rows])


def test_an_empty_slot_stops_nan(backend):
    hidden, weight = torch.randn(2, 4), torch.randn(5, 4)
    hidden[1] = float("nan")
    ids = torch.tensor([[0, 3], [-1, -1]])
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    scores = gather_linear(hidden, weight, ids, backend=backend)
    scores.sum().backward()
    assert scores[1].tolist() == [0, 0]
    assert weight.grad.isfinite().all()
    assert hidden.grad.isfinite().all()
    ids = torch.tensor([[0, 3], [2, -1]])
    scores = gather_linear(hidden, weight, ids, backend=backend)
    # A score that gets nothing upstream is left out too.
    for grad in torch.autograd.grad(scores, (hidden, weight), torch.tensor([[1.0, 2.0], [0.0, 1.0]])):
        assert grad.isfinite().all()
