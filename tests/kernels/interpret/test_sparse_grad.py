"""The weight gradient's kernels at every length of run, at real vocabularies, and in layouts that a caller may have."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import sparse_weight_grad
from arkfast.kernels.sparse_grad.op import PIECE, PIECE_OF_WIDE_ROWS

FLOAT32 = 1e-6  # relative, in the norm: sums of at most a few hundred terms of order 1


def sums(grad: torch.Tensor, ids: torch.Tensor, hidden: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Entry by entry in float64."""
    out = torch.zeros(vocabulary, hidden.shape[1], dtype=torch.float64)
    for t, row in enumerate(ids.tolist()):
        for u, v in enumerate(row):
            if v >= 0:
                out[v] += grad[t, u].double() * hidden[t].double()
    return out


def check(got: torch.Tensor, want: torch.Tensor) -> None:
    assert (got.double() - want).norm() <= FLOAT32 * want.norm()
    assert torch.equal(got.any(1), want.any(1))


@pytest.mark.parametrize("empty", [0, 1, 300])
@pytest.mark.parametrize("lengths", [(1, 2 * PIECE - 1, 1), (2 * PIECE,), (2 * PIECE + 1, 3 * PIECE - 1, 5), (3, 4 * PIECE, 3 * PIECE + 1)])
def test_runs_around_the_lengths_at_which_they_are_cut(lengths, empty):
    """Single entries, the longest run that stays whole, the shortest that is cut, all kinds of remainder; ``empty`` moves where they start
    among the places that programs look at."""
    ids = torch.cat([torch.full((n,), v) for v, n in enumerate((empty, *lengths), start=-1)])
    ids = ids[torch.randperm(len(ids))][:, None]
    grad, hidden = torch.randn(len(ids), 1), torch.randn(len(ids), 5)
    got = sparse_weight_grad(grad, ids, hidden, len(lengths) + 1, backend="triton")
    check(got, sums(grad, ids, hidden, len(lengths) + 1))
    assert torch.equal(sparse_weight_grad(grad, ids, hidden, len(lengths) + 1, backend="triton"), got)


def test_pieces_of_wide_rows_are_longer():
    """The longest run that stays whole, the shortest that is cut, and one with a remainder, of rows beyond 1,024 features."""
    lengths = (2 * PIECE_OF_WIDE_ROWS - 1, 2 * PIECE_OF_WIDE_ROWS, 3 * PIECE_OF_WIDE_ROWS + 1)
    ids = torch.cat([torch.full((n,), v) for v, n in enumerate(lengths)])
    ids = ids[torch.randperm(len(ids))][:, None]
    grad, hidden = torch.randn(len(ids), 1), torch.randn(len(ids), 1025)
    check(sparse_weight_grad(grad, ids, hidden, 3, backend="triton"), sums(grad, ids, hidden, 3))


@pytest.mark.parametrize("features", [1, 31, 1030])
def test_widths_that_no_block_divides(features):
    ids = torch.tensor([[0, 4, -1], [4, 4, 2]])
    grad, hidden = torch.randn(2, 3), torch.randn(2, features)
    check(sparse_weight_grad(grad, ids, hidden, 5, backend="triton"), sums(grad, ids, hidden, 5))


@pytest.mark.parametrize("vocabulary", [151_936, 163_958])
def test_a_real_vocabulary(vocabulary):
    ids = torch.randint(0, vocabulary, (4, 8), dtype=torch.int32)
    ids[:, 0], ids[0, 1] = vocabulary - 1, 0
    grad, hidden = torch.randn(4, 8), torch.randn(4, 3).bfloat16()
    check(sparse_weight_grad(grad, ids, hidden, vocabulary, backend="triton"), sums(grad, ids, hidden, vocabulary))


def test_rows_that_are_not_contiguous():
    grad, ids, hidden = torch.randn(7, 6).t(), torch.randint(-1, 5, (6, 14))[:, ::2], torch.randn(6, 9)[:, 2:8]
    extra = {"extra_ids": torch.randint(0, 5, (8,))[::2], "extra_rows": torch.randn(9, 4).t()[:, :6]}
    want = sums(grad, ids, hidden, 5) + sums(torch.ones(4, 1), extra["extra_ids"][:, None], extra["extra_rows"], 5)
    check(sparse_weight_grad(grad, ids, hidden, 5, backend="triton", **extra), want)


def test_the_gradient_of_an_embedding_alone():
    """No scored entry at all: T = 0, and U = 0."""
    extra_ids, extra_rows = torch.tensor([2, 0, 2]), torch.randn(3, 4)
    for positions, width in ((0, 3), (2, 0)):
        none = torch.zeros(positions, width)
        got = sparse_weight_grad(
            none, none.int(), torch.zeros(positions, 4), 3, extra_ids=extra_ids, extra_rows=extra_rows, backend="triton"
        )
        check(got, sums(torch.ones(3, 1), extra_ids[:, None], extra_rows, 3))


def test_atomics_give_the_same_sums():
    ids = torch.randint(-1, 6, (20, 7))
    grad, hidden = torch.randn(20, 7), torch.randn(20, 10)
    check(sparse_weight_grad(grad, ids, hidden, 7, mode="atomic", backend="triton"), sums(grad, ids, hidden, 7))
    out = torch.zeros(7, 10)
    sparse_weight_grad(grad, ids, hidden, 7, out=out, mode="atomic", backend="triton")
    check(out, sums(grad, ids, hidden, 7))


@pytest.mark.parametrize("mode", ["sorted", "atomic"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_ids_past_the_table_are_left_out_and_write_nothing(mode, dtype):
    """Single entries, a run that is cut into pieces, and ids that int32 does not hold."""
    vocabulary, count = 6, 3 * PIECE
    ids = torch.cat([torch.randint(0, vocabulary, (40,)), torch.full((count,), vocabulary), torch.tensor([vocabulary + 1, vocabulary + 2])])
    if dtype == torch.int64:
        ids = torch.cat([ids, torch.tensor([1 << 32, (1 << 40) + 3, -(1 << 40)])])
    ids = ids[torch.randperm(len(ids))].to(dtype)[:, None]
    grad, hidden = torch.randn(len(ids), 1), torch.randn(len(ids), 5)
    extra = {"extra_ids": torch.tensor([2, vocabulary, 7, -1], dtype=dtype), "extra_rows": torch.randn(4, 5)}
    inside = ids.masked_fill(ids >= vocabulary, -1)
    want = sums(grad, inside, hidden, vocabulary) + sums(torch.ones(1, 1), extra["extra_ids"][:1, None], extra["extra_rows"], vocabulary)
    memory = torch.zeros(vocabulary + 4, 5)
    sparse_weight_grad(grad, ids, hidden, vocabulary, out=memory[:vocabulary], mode=mode, backend="triton", **extra)
    check(memory[:vocabulary], want)
    assert not memory[vocabulary:].any()
