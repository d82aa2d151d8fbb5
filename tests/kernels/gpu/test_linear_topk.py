"""``linear_topk_lse`` on a GPU: the best of float64 up to a step of bfloat16, the same bits for every number of rows, bounded memory."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import linear_topk_lse

WIDTH, FEATURES = 151936, 1024


@pytest.fixture(scope="module")
def layer() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator(device="cuda").manual_seed(0)
    hidden = torch.randn(1500, FEATURES, device="cuda", generator=generator).bfloat16()
    weight = (torch.randn(WIDTH, FEATURES, device="cuda", generator=generator) / FEATURES**0.5).bfloat16()
    return hidden, weight


@pytest.mark.parametrize("mapped", [False, True])
def test_the_best_up_to_a_step_of_bfloat16(layer, mapped):
    hidden, weight = layer[0][:40], layer[1]
    vocab_map = torch.randperm(WIDTH, device="cuda").int() if mapped else None
    blocked = torch.arange(151643, WIDTH, device="cuda", dtype=torch.int32)
    got = linear_topk_lse(hidden, weight, 32, vocab_map=vocab_map, blocked=blocked, need_lse=True, backend="triton")
    exact = hidden.double() @ weight.double().t()
    if vocab_map is not None:
        exact = torch.empty_like(exact).index_copy_(1, vocab_map.long(), exact)
    exact.index_fill_(1, blocked.long(), float("-inf"))
    ids = got.ids.long()
    chosen = exact.gather(1, ids)
    # 4·H·2⁻²⁴·Σ|w·h|, and Σ|w·h| is below 0.64·√H for these inputs; 40 leaves room for the largest of 40 rows.
    assert ((got.values.double() - chosen).abs() <= 4 * FEATURES * 2.0**-24 * 40).all()
    left_out = exact.scatter(1, ids, float("-inf")).amax(1)
    assert (chosen.amin(1) >= left_out - 2.0**-7 * exact.amax(1)).all()
    assert ((got.lse.double() - exact.logsumexp(1)).abs() <= 2.0**-8 * exact.amax(1)).all()


def test_the_number_of_rows_changes_no_bit(layer):
    hidden, weight = layer
    ids = torch.randint(0, WIDTH, (1500, 32), device="cuda", dtype=torch.int32)
    whole = linear_topk_lse(hidden, weight, 32, gather_ids=ids, need_lse=True, backend="triton")
    again = linear_topk_lse(hidden, weight, 32, gather_ids=ids, need_lse=True, backend="triton")
    for rows in (1, 1024, 1025):
        part = linear_topk_lse(hidden[:rows], weight, 32, gather_ids=ids[:rows], need_lse=True, backend="triton")
        assert all(torch.equal(mine, true[:rows]) for mine, true in zip(part, whole, strict=True)), rows
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_memory_is_the_workspaces_whatever_the_number_of_rows(layer):
    hidden, weight = layer
    for repeats in (1, 4):
        many = hidden.repeat(repeats, 1)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        linear_topk_lse(many, weight, 32, workspace_mb=512, backend="triton")
        assert torch.cuda.max_memory_allocated() - before <= (512 << 20) + 5632 * len(many)


def test_nothing_waits_for_the_device(layer, no_sync):
    hidden, weight = layer[0][:100], layer[1]
    ids = torch.zeros(100, 32, device="cuda", dtype=torch.int32)
    blocked = torch.arange(151643, WIDTH, device="cuda", dtype=torch.int32)
    vocab_map = torch.arange(WIDTH, device="cuda", dtype=torch.int32)
    for options in ({}, {"vocab_map": vocab_map}):
        linear_topk_lse(hidden, weight, 32, blocked=blocked, gather_ids=ids, need_lse=True, **options)
        with no_sync():
            linear_topk_lse(hidden, weight, 32, blocked=blocked, gather_ids=ids, need_lse=True, **options)
