"""``topk_lse`` on a GPU: exact at the real width, the same bits every time, no wait for the device, capturable."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import topk_lse

INF = float("inf")
WIDTH = 151936


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("rows", "k"), [(1, 1), (40, 32), (257, 64)])
def test_equals_a_stable_sort(rows, k, dtype):
    logits = (torch.randn(rows, WIDTH, device="cuda") * 3).to(dtype)
    logits[0, ::1000] = 9.0
    blocked = torch.arange(151643, WIDTH, device="cuda", dtype=torch.int32)
    ids = torch.randint(-1, WIDTH, (rows, 70), device="cuda", dtype=torch.int32)
    got = topk_lse(logits, k, blocked=blocked, gather_ids=ids, need_lse=True, backend="triton")
    x = logits.float().index_fill(1, blocked.long(), -INF)
    values, order = torch.sort(x, dim=1, descending=True, stable=True)
    assert torch.equal(got.ids.long(), order[:, :k])
    assert torch.equal(got.values, values[:, :k])
    assert torch.equal(got.gathered, x.gather(1, ids.clamp_min(0).long()).masked_fill(ids < 0, -INF))
    assert ((got.lse.double() - x.double().logsumexp(1)).abs() <= 2e-6 * (1 + values[:, 0].abs().double())).all()
    assert not got.flags.any()


def codebooks(rows: int) -> torch.Tensor:
    """Ranges of 4,096 ids in turn, as flattened codebooks have, with an end token where a turn begins."""
    start = 100_000 + 4096 * (torch.arange(rows, device="cuda") % 8)
    end = torch.where(torch.arange(rows, device="cuda") % 8 == 0, 151_645, 0)
    return torch.stack([torch.stack([start, start + 4096], 1), torch.stack([end, end + (end > 0)], 1)], 1).int()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("rows", "k"), [(40, 1), (257, 32)])
def test_ranges_equal_a_mask(rows, k, dtype):
    logits, ranges = (torch.randn(rows, WIDTH, device="cuda") * 3).to(dtype), codebooks(rows)
    blocked = torch.arange(100_000, 100_100, device="cuda", dtype=torch.int32)
    got = topk_lse(logits, k, blocked=blocked, ranges=ranges, need_lse=True, backend="triton")
    ids = torch.arange(WIDTH, device="cuda")
    inside = ((ids >= ranges[:, :, :1]) & (ids < ranges[:, :, 1:])).any(1)
    x = logits.float().masked_fill(~inside, -INF).index_fill(1, blocked.long(), -INF)
    values, order = torch.sort(x, dim=1, descending=True, stable=True)
    assert torch.equal(got.ids.long(), order[:, :k])
    assert torch.equal(got.values, values[:, :k])
    assert ((got.lse.double() - x.double().logsumexp(1)).abs() <= 2e-6 * (1 + values[:, 0].abs().double())).all()


def test_same_bits_every_time_and_for_every_number_of_rows():
    logits = (torch.randn(1500, WIDTH, device="cuda") * 3).bfloat16()
    first = topk_lse(logits, 32, need_lse=True, backend="triton")
    again = topk_lse(logits, 32, need_lse=True, backend="triton")
    few = topk_lse(logits[700:740], 32, need_lse=True, backend="triton")
    for a, b, c in zip(first, again, few, strict=True):
        assert a is b or torch.equal(a, b)
        assert a is c or torch.equal(a[700:740], c)


def test_offsets_beyond_32_bits():
    """14,200 rows of 151,936 are more than 2^31 elements."""
    rows = 14200
    if torch.cuda.mem_get_info()[0] < rows * WIDTH * 2 * 1.2:
        pytest.skip("less than 5.2 GB of GPU memory is free")
    logits = torch.zeros(rows, WIDTH, device="cuda", dtype=torch.bfloat16)
    logits[-1, 777], logits[-1, 5] = 2.0, 1.0
    got = topk_lse(logits, 3, backend="triton")
    assert got.ids[-1].tolist() == [777, 5, 0]
    assert got.ids[0].tolist() == [0, 1, 2]


def test_nothing_waits_for_the_device(no_sync):
    logits = torch.randn(40, WIDTH, device="cuda", dtype=torch.bfloat16)
    blocked = torch.arange(151643, WIDTH, device="cuda", dtype=torch.int32)
    for ranges in (None, codebooks(40)):
        topk_lse(logits, 32, blocked=blocked, ranges=ranges, need_lse=True)
        with no_sync():
            topk_lse(logits, 32, blocked=blocked, ranges=ranges, need_lse=True)


def test_a_rollout_step_can_be_captured():
    logits = torch.randn(40, WIDTH, device="cuda", dtype=torch.bfloat16)
    blocked = torch.arange(151643, WIDTH, device="cuda", dtype=torch.int32)
    topk_lse(logits, 32, blocked=blocked, need_lse=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = topk_lse(logits, 32, blocked=blocked, need_lse=True)
    for _ in range(2):
        logits.normal_()
        graph.replay()
        want = topk_lse(logits, 32, blocked=blocked, need_lse=True)
        assert all(a is b or torch.equal(a, b) for a, b in zip(out, want, strict=True))
