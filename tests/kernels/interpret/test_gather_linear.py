"""The gathered products' kernels: error bounds, widths that no block divides, real vocabularies, strides."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import gather_linear

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make(positions: int, features: int, vocabulary: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.randint(-1, vocabulary, (positions, width), dtype=torch.int32)
    return torch.randn(positions, features).to(dtype), torch.randn(vocabulary, features).to(dtype), ids


def exact(hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores in float64, and Σ |w · h| of each, which the rounding errors go by."""
    h, w = hidden.double()[:, None], weight.double()[ids.clamp_min(0).long()]
    live = ids >= 0
    return (w * h).sum(-1) * live, (w * h).abs().sum(-1) * live


# One feature; fewer and more than a block of them, odd numbers of both; 70 and 129 slots take more than one block of slots.
@pytest.mark.parametrize(("features", "width"), [(1, 1), (7, 64), (131, 5), (300, 70), (64, 129)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_are_within_the_bound_of_float32_sums(dtype, features, width):
    hidden, weight, ids = make(3, features, 40, width, dtype)
    got = gather_linear(hidden, weight, ids, backend="triton")
    want, size = exact(hidden, weight, ids)
    assert ((got.double() - want).abs() <= 4 * features * 2.0**-24 * size).all()


@pytest.mark.parametrize("width", [1, 64, 70])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_equal_dense_autograd(dtype, width):
    hidden, weight, ids = (x.requires_grad_() if x.is_floating_point() else x for x in make(4, 70, 30, width, dtype))
    upstream = torch.randn(ids.shape)
    gather_linear(hidden, weight, ids, backend="triton").backward(upstream)
    dense = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    exact(*dense, ids)[0].backward(upstream.double())
    # One rounding to the inputs' dtype: within half its epsilon.
    bound = max(1e-6, torch.finfo(dtype).eps / 2 if dtype != torch.float32 else 0.0)
    for mine, true in ((hidden.grad, dense[0].grad), (weight.grad, dense[1].grad)):
        assert mine.dtype == dtype
        assert (mine.double() - true).norm() <= bound * true.norm()


def test_error_is_no_worse_than_of_the_product_in_the_same_dtype():
    hidden, weight, ids = make(4, 200, 50, 9, torch.bfloat16)
    want, _ = exact(hidden, weight, ids)
    plain = (hidden @ weight.t()).gather(1, ids.clamp_min(0).long()) * (ids >= 0)
    ours = gather_linear(hidden, weight, ids, backend="triton")
    assert (ours.double() - want).norm() <= (plain.double() - want).norm() + 1e-6 * want.norm()


@pytest.mark.parametrize("vocabulary", [151_936, 163_958])
def test_the_last_rows_of_a_real_vocabulary(vocabulary):
    hidden, weight, ids = make(3, 8, vocabulary, 6, torch.bfloat16)
    ids[:, 0], ids[:, 1] = vocabulary - 1, 0
    want, size = exact(hidden, weight, ids)
    assert ((gather_linear(hidden, weight, ids, backend="triton").double() - want).abs() <= 1e-5 * size).all()


def test_rows_that_are_not_contiguous():
    hidden, weight, ids = torch.randn(4, 30)[:, 5:25], torch.randn(20, 12).t()[:, :20], torch.randint(-1, 12, (4, 9))[:, ::3]
    plain = [x.detach().contiguous().requires_grad_() for x in (hidden, weight)]
    strided = [hidden.detach().requires_grad_(), weight.detach().requires_grad_()]
    results = []
    for inputs, rows in ((plain, ids.contiguous()), (strided, ids)):
        scores = gather_linear(*inputs, rows, backend="triton")
        scores.square().sum().backward()
        results.append((scores.detach(), inputs[0].grad, inputs[1].grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_infinite_and_nan_weights_stay_where_they_are_asked_for():
    hidden, weight = torch.ones(2, 4), torch.ones(5, 4)
    weight[1, 2], weight[2, 0], weight[3] = float("inf"), float("-inf"), float("nan")
    scores = gather_linear(hidden, weight, torch.tensor([[0, 1, 2], [-1, 4, 3]]), backend="triton")
    assert scores[0].tolist() == [4, float("inf"), float("-inf")]
    assert scores[1, :2].tolist() == [0, 4]
    assert scores[1, 2].isnan()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_an_id_past_the_weight_shows_and_reads_nothing(dtype):
    memory = torch.randn(14, 70)
    weight, hidden = memory[:12].clone().requires_grad_(), torch.randn(3, 70, requires_grad=True)
    ids = torch.tensor([[3, 12, -1, 13], [0, 11, 5, 5], [12, 1 << 30, 12, 1]], dtype=dtype)
    if dtype == torch.int64:
        ids[2, 1] = 1 << 40
    scores = gather_linear(hidden, weight, ids, backend="triton")
    past = ids >= 12
    assert torch.equal(scores.isnan(), past)
    inside = ids.masked_fill(past, -1)
    want, size = exact(hidden.detach(), weight.detach(), inside)
    assert ((scores.detach().double() - want).abs()[~past] <= 1e-5 * size[~past] + 1e-12).all()
    got = torch.autograd.grad(scores, (hidden, weight), torch.ones(3, 4))
    true = torch.autograd.grad(gather_linear(hidden, weight, inside, backend="triton"), (hidden, weight), torch.ones(3, 4))
    assert all(torch.equal(a, b) for a, b in zip(got, true, strict=True))
