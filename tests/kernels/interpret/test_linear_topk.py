"""A linear layer's top-k through the row kernels: the workspace's padding, float32 scores, maps, precision. The contract tests run too."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from arkfast.kernels import linear_topk_lse, topk_lse
from arkfast.kernels.common.beside import BUFFERS, Beside
from arkfast.kernels.linear_topk import launcher
from arkfast.kernels.linear_topk.launcher import aligned, chunk_rows

INF = float("inf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [1, 7, 64])
def test_scores_are_the_best_of_float32(dtype, k):
    """Scores within 4·H·2⁻²⁴·Σ|w·h| of float64, in the order that they give; chosen ids best up to one step of the product's type."""
    features = 200  # not a multiple of the kernel's block
    hidden, weight = torch.randn(3, features).to(dtype), torch.randn(997, features).to(dtype)
    got = linear_topk_lse(hidden, weight, k, backend="triton")
    exact = hidden.double() @ weight.double().t()
    bound = 4 * features * 2.0**-24 * (hidden.double().abs() @ weight.double().abs().t())
    ids = got.ids.long()
    assert ((got.values.double() - exact.gather(1, ids)).abs() <= bound.gather(1, ids)).all()
    assert (got.values[:, 1:] <= got.values[:, :-1]).all()
    # Two roundings of the product's type, of the worst chosen score and of the best one that was left out.
    left_out = exact.scatter(1, ids, -INF).amax(1)
    step = torch.finfo(dtype).eps * exact.abs().amax(1) + 2 * bound.amax(1)
    assert (exact.gather(1, ids).amin(1) >= left_out - step).all()


def test_padding_of_the_workspace_takes_part_in_nothing():
    """Every logit is below the zeros that a careless padding would hold, and k asks for more than there are."""
    hidden, weight = torch.ones(2, 8), -torch.rand(65, 8) - 1
    got = linear_topk_lse(hidden, weight, 64, need_lse=True, gather_ids=torch.tensor([[64, 65, 127, 128]] * 2), backend="triton")
    logits = (hidden.double() @ weight.double().t()).float()
    want = topk_lse(logits, 64, need_lse=True, gather_ids=torch.tensor([[64, 65, 127, 128]] * 2), backend="torch")
    assert (got.ids < 65).all()
    assert got.gathered[:, 1:].eq(-INF).all()
    # Eight products of order 1 added in float32 in another order.
    for mine, true in ((got.values, want.values), (got.gathered, want.gathered), (got.lse, want.lse)):
        torch.testing.assert_close(mine, true, rtol=8 * 2.0**-23, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts_of_the_inputs(dtype):
    """A transposed weight, hidden states in every other row, a slice of features."""
    hidden, weight = torch.randint(-2, 3, (6, 40)).to(dtype), torch.randint(-2, 3, (130, 40)).to(dtype)
    want = linear_topk_lse(hidden[::2, 3:19].contiguous(), weight[:, 3:19].contiguous(), 9, backend="torch")
    for w in (weight[:, 3:19], weight[:, 3:19].t().contiguous().t()):
        got = linear_topk_lse(hidden[::2, 3:19], w, 9, backend="triton")
        assert torch.equal(got.ids, want.ids)
        assert torch.equal(got.values, want.values)


def test_ties_beyond_the_boundary_go_to_the_lowest_output_id():
    """One value everywhere, so output ids alone decide, in an order that is not the columns'."""
    vocab_map = torch.randperm(5000).int()
    vocab_map[:50] = -1
    got = linear_topk_lse(
        torch.ones(1, 4),
        torch.ones(5000, 4),
        16,
        vocab_map=vocab_map,
        blocked=torch.arange(10),
        gather_ids=torch.tensor([[3, 4999, -1, 12]]),
        need_lse=True,
        backend="triton",
    )
    taking_part = sorted(i for i in vocab_map.tolist() if i >= 10)
    assert got.ids[0].tolist() == taking_part[:16]
    assert got.gathered[0].tolist() == [-INF, 4.0 if 4999 in taking_part else -INF, -INF, 4.0 if 12 in taking_part else -INF]
    assert abs(got.lse.item() - (4 + torch.tensor(float(len(taking_part))).log().item())) < 2e-6 * 5


def test_more_gathered_ids_than_one_program_scores():
    hidden, weight = torch.randn(2, 16).bfloat16(), torch.randn(300, 16).bfloat16()
    ids = torch.randint(-1, 300, (2, 150))
    got = linear_topk_lse(hidden, weight, 4, gather_ids=ids, backend="triton").gathered
    exact = (hidden.double() @ weight.double().t()).gather(1, ids.clamp_min(0)).masked_fill(ids < 0, -INF)
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=16 * 16 * 2.0**-24)


def test_the_number_of_rows_changes_no_bit_in_small(monkeypatch):
    """Chunks of four rows: one short chunk, one full, several. Another chunk size gives the same answer where sums are exact."""
    monkeypatch.setattr(launcher, "CHUNK_ROWS_INTERPRETED", 4)
    hidden, weight, ids = torch.randn(6, 48), torch.randn(500, 48), torch.randint(0, 500, (6, 3))
    whole = linear_topk_lse(hidden, weight, 16, gather_ids=ids, need_lse=True, backend="triton")
    for rows in (0, 1, 4, 5):
        part = linear_topk_lse(hidden[:rows], weight, 16, gather_ids=ids[:rows], need_lse=True, backend="triton")
        assert all(torch.equal(mine, true[:rows]) for mine, true in zip(part, whole, strict=True)), rows
    hidden, weight = torch.randint(-2, 3, (6, 8)).float(), torch.randint(-2, 3, (500, 8)).float()
    fours = linear_topk_lse(hidden, weight, 16, need_lse=True, backend="triton")
    monkeypatch.setattr(launcher, "CHUNK_ROWS_INTERPRETED", 3)
    for mine, other in zip(linear_topk_lse(hidden, weight, 16, need_lse=True, backend="triton"), fours, strict=True):
        assert mine is other or torch.equal(mine, other)


def test_a_real_vocabulary():
    """163,958 columns: no multiple of 64, so rows of the workspace are padded. Small whole numbers make everything exact, and ties many."""
    width = 163958
    hidden, weight = torch.randint(-2, 3, (2, 8)).bfloat16(), torch.randint(-2, 3, (width, 8)).bfloat16()
    blocked = torch.arange(151643, width, dtype=torch.int32)
    got = linear_topk_lse(hidden, weight, 32, blocked=blocked, backend="triton")
    logits = hidden.float() @ weight.float().t()
    want = topk_lse(logits, 32, blocked=blocked, backend="torch")
    assert torch.equal(got.ids, want.ids)
    assert torch.equal(got.values, want.values)


def test_the_workspace_bounds_the_chunk():
    cuda = torch.device("cuda")
    assert chunk_rows(151936, 1024, torch.bfloat16, cuda) == 1024
    assert chunk_rows(151936, 512, torch.bfloat16, cuda) == 512
    assert aligned(163958) == 163968
    for megabytes in (1, 64, 128):
        rows = chunk_rows(151936, megabytes, torch.bfloat16, cuda)
        assert rows == 1 or rows * 151936 * 2 * BUFFERS <= megabytes << 20


def test_chunks_take_turns_with_two_buffers(monkeypatch):
    """Of five chunks each writes the buffer that it claimed, and its rows are those of its own product; a single chunk has one buffer."""
    said, product = [], torch.mm

    class Halves(Beside):
        def claim(self, buffer):
            said.append(("claim", buffer))

        @contextmanager
        def second(self, buffer):
            said.append(("second", buffer))
            yield

    def multiplied(a, b, *, out):
        said.append(("product", out.storage_offset() // (4 * aligned(500))))
        return product(a, b, out=out)

    monkeypatch.setattr(launcher, "CHUNK_ROWS_INTERPRETED", 4)
    monkeypatch.setattr(launcher, "Beside", Halves)
    monkeypatch.setattr(torch, "mm", multiplied)
    hidden, weight = torch.randint(-2, 3, (18, 8)).float(), torch.randint(-2, 3, (500, 8)).float()
    got = linear_topk_lse(hidden, weight, 4, backend="triton")
    want = topk_lse(hidden @ weight.t(), 4, backend="torch")
    assert torch.equal(got.ids, want.ids)
    assert said == [(what, number % 2) for number in range(5) for what in ("claim", "product", "second")]
    said.clear()
    linear_topk_lse(hidden[:4], weight, 4, backend="triton")
    assert said == [(what, 0) for what in ("claim", "product", "second")]
