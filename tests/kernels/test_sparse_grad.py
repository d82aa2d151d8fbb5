"""The weight gradient from few entries against a dense product in float64: runs of every length, accumulation, tied embeddings."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import sparse_weight_grad


def example(positions: int, width: int, features: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Factors and hidden rows N(0, 1); ids with repeats within and across positions, and holes."""
    ids = torch.randint(-1, vocabulary, (positions, width), dtype=torch.int32)
    return torch.randn(positions, width), ids, torch.randn(positions, features)


def dense(grad: torch.Tensor, ids: torch.Tensor, hidden: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Gᵀ · hidden in float64, G [T, V] with the factors added up."""
    table = torch.zeros(len(hidden), vocabulary + 1, dtype=torch.float64)
    table.scatter_add_(1, ids.long() % (vocabulary + 1), grad.double())  # −1 lands in the extra column
    return (table.t() @ hidden.double())[:vocabulary]


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double() - want).norm() / want.norm()).item()


def test_equals_the_dense_product_and_repeats_itself(backend):
    # 60 · 40 entries on 9 ids: runs of some 240 to 290 entries, on both sides of the length from which they are cut.
    grad, ids, hidden = example(60, 40, 24, 9)
    got = sparse_weight_grad(grad, ids, hidden, 11, backend=backend)
    assert got.dtype == torch.float32
    assert distance(got, dense(grad, ids, hidden, 11)) <= 1e-6
    assert not got[9:].any()
    assert torch.equal(sparse_weight_grad(grad, ids, hidden, 11, backend=backend), got)


def test_accumulates_into_out(backend):
    grad, ids, hidden = example(20, 5, 6, 9)
    first = sparse_weight_grad(grad, ids, hidden, 12, backend=backend)
    out = torch.ones_like(first)
    assert sparse_weight_grad(grad, ids, hidden, 12, out=out, backend=backend) is out
    torch.testing.assert_close(out, first + 1, rtol=0, atol=1e-5)
    strided = torch.ones(6, 12).t()
    sparse_weight_grad(grad, ids, hidden, 12, out=strided, backend=backend)
    torch.testing.assert_close(strided, out, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_and_results_are_summed_in_float32(backend, dtype):
    grad, ids, hidden = example(30, 7, 10, 15)
    grad, hidden = grad.to(dtype), hidden.to(dtype)
    want = dense(grad, ids, hidden, 15)
    wide = sparse_weight_grad(grad, ids, hidden, 15, backend=backend)
    assert wide.dtype == torch.float32
    assert distance(wide, want) <= 1e-6
    narrow = sparse_weight_grad(grad, ids, hidden, 15, dtype=dtype, backend=backend)
    assert torch.equal(narrow, wide.to(dtype))


@pytest.mark.parametrize("mode", ["sorted", "atomic"])
def test_rows_of_a_tied_embedding_join_the_sum(backend, mode):
    grad, ids, hidden = example(25, 6, 10, 14)
    extra_ids, extra_rows = torch.randint(-1, 14, (33,)), torch.randn(33, 10)
    got = sparse_weight_grad(grad, ids, hidden, 14, extra_ids=extra_ids, extra_rows=extra_rows, mode=mode, backend=backend)
    want = dense(grad, ids, hidden, 14) + dense(torch.ones(33, 1), extra_ids[:, None], extra_rows, 14)
    assert distance(got, want) <= 1e-6


def test_unused_positions_and_rows_are_not_read(backend):
    grad, ids, hidden = example(5, 4, 8, 9)
    want = dense(grad[1:], ids[1:], hidden[1:], 9)
    ids[0] = -7
    grad[0], hidden[0] = float("nan"), float("inf")
    got = sparse_weight_grad(grad, ids, hidden, 9, backend=backend)
    assert distance(got, want) <= 1e-6


@pytest.mark.parametrize("mode", ["sorted", "atomic"])
def test_entries_of_factor_0_add_0_whatever_their_row_holds(backend, mode):
    grad, ids, hidden = example(5, 4, 8, 9)
    grad[0], ids[0, 0] = 0.0, 3
    want = dense(grad, ids, hidden, 9)
    hidden[0] = float("nan")
    assert distance(sparse_weight_grad(grad, ids, hidden, 9, mode=mode, backend=backend), want) <= 1e-6


@pytest.mark.parametrize(("positions", "width", "features"), [(0, 3, 4), (3, 0, 4), (1, 1, 1), (2, 300, 3)])
def test_small_shapes(backend, positions, width, features):
    grad, hidden = torch.ones(positions, width), torch.ones(positions, features)
    got = sparse_weight_grad(grad, torch.zeros(positions, width, dtype=torch.int64), hidden, 2, backend=backend)
    assert got.tolist() == [[positions * width] * features, [0] * features]
