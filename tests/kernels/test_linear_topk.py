"""Top-k over a linear layer: equal to top-k of the product, in output ids, whatever the number of rows and the workspace."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import FLAG_INF, FLAG_NAN, FLAG_SHORT, linear_topk_lse, topk_lse

INF = float("inf")


def exact_layer(rows: int, features: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Small whole numbers: every product and sum is exact in any order and most logits tie."""
    return torch.randint(-2, 3, (rows, features)).to(dtype), torch.randint(-2, 3, (width, features)).to(dtype)


@pytest.mark.parametrize("rescore", ["fp32", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_equals_topk_of_the_product(backend, dtype, rescore):
    hidden, weight = exact_layer(70, 8, 301, dtype)
    blocked = torch.tensor([0, 5, 300], dtype=torch.int32)
    gather_ids = torch.randint(-1, 301, (70, 6), dtype=torch.int32)
    got = linear_topk_lse(hidden, weight, 12, blocked=blocked, gather_ids=gather_ids, need_lse=True, rescore=rescore, backend=backend)
    logits = (hidden.double() @ weight.double().t()).to(torch.float64 if dtype == torch.float64 else torch.float32)
    want = topk_lse(logits, 12, blocked=blocked, gather_ids=gather_ids, need_lse=True, backend="torch")
    for mine, true in zip(got, want, strict=True):
        assert mine.dtype == true.dtype
    assert torch.equal(got.ids, want.ids)
    assert torch.equal(got.values, want.values)
    assert torch.equal(got.gathered, want.gathered)
    assert torch.equal(got.flags, want.flags)
    # A maximum below 33, one sum and one log.
    torch.testing.assert_close(got.lse, want.lse, rtol=0, atol=2e-6 * 33)


def test_the_number_of_rows_changes_no_bit(backend):
    hidden, weight = torch.randn(150, 48), torch.randn(500, 48)
    gather_ids = torch.randint(0, 500, (150, 3))
    whole = linear_topk_lse(hidden, weight, 16, gather_ids=gather_ids, need_lse=True, backend=backend)
    for rows in (1, 2, 63, 64, 65, 128, 149):
        part = linear_topk_lse(hidden[:rows], weight, 16, gather_ids=gather_ids[:rows], need_lse=True, backend=backend)
        assert all(torch.equal(mine, true[:rows]) for mine, true in zip(part, whole, strict=True)), rows
    none = linear_topk_lse(hidden[:0], weight, 16, gather_ids=gather_ids[:0], need_lse=True, backend=backend)
    assert [x.shape for x in none] == [(0, 16), (0, 16), (0,), (0, 3), (0,)]


def test_a_smaller_workspace_gives_the_same_answer(backend):
    hidden, weight = exact_layer(100, 8, 40000)
    wide = linear_topk_lse(hidden, weight, 8, backend=backend)
    narrow = linear_topk_lse(hidden, weight, 8, workspace_mb=4, backend=backend)  # 3 rows at a time
    assert torch.equal(narrow.ids, wide.ids)
    assert torch.equal(narrow.values, wide.values)


def test_bfloat16_selects_on_the_product_and_scores_in_float32(backend):
    hidden, weight = torch.randn(20, 64).bfloat16(), torch.randn(700, 64).bfloat16()
    gather_ids = torch.randint(0, 700, (20, 5), dtype=torch.int32)
    got = linear_topk_lse(hidden, weight, 9, gather_ids=gather_ids, backend=backend)
    plain = linear_topk_lse(hidden, weight, 9, gather_ids=gather_ids, rescore="none", backend=backend)
    exact = hidden.double() @ weight.double().t()
    # 64 products of order 1 added in float32: a few hundred roundings of values below 64.
    torch.testing.assert_close(got.values.double(), exact.gather(1, got.ids.long()), rtol=0, atol=64 * 64 * 2.0**-24)
    torch.testing.assert_close(got.gathered.double(), exact.gather(1, gather_ids.long()), rtol=0, atol=64 * 64 * 2.0**-24)
    assert torch.equal(plain.values, plain.values.bfloat16().float())
    assert torch.equal(got.ids.sort().values, plain.ids.sort().values)
    assert (got.values[:, 1:] <= got.values[:, :-1]).all()
    assert not torch.equal(got.ids, plain.ids)  # bf16 ties came apart


def test_vocab_map_answers_in_output_ids(backend):
    """A permutation with holes equals permuting the weight: the tie rule, blocked and gathered ids are all in output ids."""
    hidden, weight = exact_layer(30, 6, 60)
    output = torch.randperm(80)[:60].to(torch.int32)
    output[torch.tensor([3, 40])] = -1
    moved = torch.full((80, 60), 0.0).double()
    kept = output >= 0
    moved[output[kept].long(), kept.nonzero().flatten()] = 1
    absent = [i for i in range(80) if i not in output.tolist()]
    blocked = output[[7, 8]]
    gather_ids = torch.randint(0, 80, (30, 5), dtype=torch.int32)
    gather_ids[:, 0] = absent[0]
    gather_ids[:, 1] = blocked[0]
    gather_ids[:, 2] = -1
    got = linear_topk_lse(hidden, weight, 10, vocab_map=output, blocked=blocked, gather_ids=gather_ids, need_lse=True, backend=backend)
    logits = (hidden.double() @ (moved @ weight.double()).t()).float()
    out = torch.cat([torch.tensor(absent), blocked.long()])
    want = topk_lse(logits, 10, blocked=out, gather_ids=gather_ids, need_lse=True, backend="torch")
    assert torch.equal(got.ids, want.ids)
    assert torch.equal(got.values, want.values)
    assert torch.equal(got.gathered, want.gathered)
    assert (got.gathered[:, :3] == -INF).all()
    torch.testing.assert_close(got.lse, want.lse, rtol=0, atol=2e-6 * 25)
    ignored = torch.cat([blocked, torch.tensor([absent[1], -1, 10**6], dtype=torch.int32)])
    assert torch.equal(linear_topk_lse(hidden, weight, 10, vocab_map=output, blocked=ignored, backend=backend).ids, got.ids)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_vocab_map_keeps_the_order_in_every_dtype(backend, dtype):
    hidden, weight = exact_layer(10, 6, 60)
    output = torch.randperm(60).to(torch.int32)
    want = linear_topk_lse(hidden, weight, 10, vocab_map=output, backend=backend)
    got = linear_topk_lse(hidden.to(dtype), weight.to(dtype), 10, vocab_map=output, backend=backend)
    assert torch.equal(got.ids, want.ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_k_beyond_the_allowed_ids(backend, dtype):
    hidden, weight = exact_layer(3, 4, 6, dtype)
    got = linear_topk_lse(hidden, weight, 8, blocked=torch.tensor([1, 2]), vocab_map=torch.tensor([0, 1, 2, 3, 4, -1]), backend=backend)
    assert sorted(got.ids[0].tolist()) == [-1] * 5 + [0, 3, 4]
    assert (got.ids[:, 3:] == -1).all()
    assert (got.values[:, 3:] == -INF).all()
    assert got.flags.tolist() == [FLAG_SHORT] * 3


def test_bad_numbers_flag_their_row_alone(backend):
    hidden, weight = torch.randn(4, 5), torch.randn(30, 5).abs() + 0.1
    hidden[1, 2] = float("nan")
    hidden[3, 0] = INF
    got = linear_topk_lse(hidden, weight, 3, backend=backend)
    assert got.flags.tolist() == [0, FLAG_NAN | FLAG_SHORT, 0, FLAG_INF]
    assert got.values[[0, 2]].isfinite().all()


def test_mixed_dtypes_and_no_gradient(backend):
    hidden, weight = exact_layer(5, 6, 40)
    gather_ids = torch.zeros(5, 1, dtype=torch.int32)
    got = linear_topk_lse(hidden.bfloat16().requires_grad_(), weight.requires_grad_(), 4, gather_ids=gather_ids, backend=backend)
    assert torch.equal(got.ids, linear_topk_lse(hidden, weight, 4, backend=backend).ids)
    assert not got.values.requires_grad
    assert not got.gathered.requires_grad


def test_autocast_does_not_narrow_the_product(backend):
    hidden, weight = torch.randn(5, 32), torch.randn(40, 32)
    want = linear_topk_lse(hidden, weight, 4, need_lse=True, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        got = linear_topk_lse(hidden, weight, 4, need_lse=True, backend=backend)
    assert torch.equal(got.values, want.values)
    assert torch.equal(got.lse, want.lse)
