"""Top-k of rows against a stable full sort, which defines the order: value down, then lowest id."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import FLAG_INF, FLAG_NAN, FLAG_SHORT, topk_lse

INF = float("inf")


def sort_oracle(logits: torch.Tensor, k: int, blocked: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(values, ids) by sorting whole rows: blocked and NaN as −inf, −0 as +0, stable so that equal values keep ascending ids."""
    x = logits.double() + 0.0
    x = torch.where(x.isnan(), -INF, x)
    if blocked is not None:
        x = x.index_fill(1, blocked.long(), -INF)
    x = torch.cat([x, torch.full((len(x), max(0, k - x.shape[1])), -INF, dtype=x.dtype)], dim=1)
    values, ids = torch.sort(x, dim=1, descending=True, stable=True)
    return values[:, :k], torch.where(values == -INF, -1, ids)[:, :k]


def assert_equals_oracle(logits: torch.Tensor, k: int, backend: str, blocked: torch.Tensor | None = None) -> None:
    got = topk_lse(logits, k, blocked=blocked, backend=backend)
    values, ids = sort_oracle(logits, k, blocked)
    assert got.ids.dtype == torch.int32
    assert torch.equal(got.values.double(), values)
    assert torch.equal(got.ids.long(), ids)
    # −0 compares equal to +0, so its sign is looked at on its own.
    assert not (got.values.signbit() & (got.values == 0)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    ("rows", "width", "k"),
    [
        (1, 1, 1),  # the smallest
        (3, 31, 5),  # narrower than any block
        (5, 257, 32),  # one past a power of two
        (2, 4999, 32),  # a prime, many groups
        (4, 16, 16),  # all of them
        (4, 7, 20),  # more than there are
    ],
)
def test_random_rows(backend, rows, width, k, dtype):
    assert_equals_oracle((torch.randn(rows, width) * 3).to(dtype), k, backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("levels", [1, 2, 5])
def test_ties_go_to_the_lowest_id(backend, dtype, levels):
    """Few levels make most values equal, at the k-th place too; around 0 they hold −0 and +0."""
    logits = (torch.randint(0, levels, (6, 300)) - levels // 2).to(dtype) * torch.where(torch.rand(6, 300) < 0.5, -1.0, 1.0).to(dtype)
    assert_equals_oracle(logits, 32, backend)


def test_bfloat16_ties_at_the_boundary_of_a_wide_row(backend):
    """A bf16 grid makes ties at rank k the rule; here they are certain, and torch.topk may answer with either id."""
    logits = (torch.randn(2, 151936) * 3).bfloat16()
    logits[:, ::30000] = logits.sort(dim=1, descending=True).values[:, 31:32]
    values = logits.sort(dim=1, descending=True).values
    assert (values[:, 31] == values[:, 32]).all()
    assert_equals_oracle(logits, 32, backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_special_values_take_their_place_and_flag_the_row(backend, dtype):
    logits = torch.randn(6, 20, dtype=dtype)
    logits[1, 3] = float("nan")
    logits[2, 5], logits[2, 7] = INF, INF
    logits[3, 2:] = -INF
    logits[4] = float("nan")
    logits[5, 0], logits[5, 1] = float("nan"), INF
    assert_equals_oracle(logits, 4, backend)
    got = topk_lse(logits, 4, need_lse=True, backend=backend)
    assert got.flags.dtype == torch.uint8
    assert got.flags.tolist() == [0, FLAG_NAN, FLAG_INF, FLAG_SHORT, FLAG_NAN | FLAG_SHORT, FLAG_NAN | FLAG_INF]
    assert got.ids[2, :2].tolist() == [5, 7]
    assert got.lse[2] == INF
    assert got.lse[4] == -INF
    assert got.lse[1].isfinite()


def test_extreme_floats_keep_their_order_and_bits(backend):
    tiny, huge = torch.finfo(torch.float32).smallest_normal, torch.finfo(torch.float32).max
    logits = torch.tensor([[-tiny, huge, 0.0, -huge, tiny, -0.0, tiny / 4, -tiny / 4]])
    got = topk_lse(logits, 8, backend=backend)
    assert got.ids.tolist() == [[1, 4, 6, 2, 5, 7, 0, 3]]
    assert torch.equal(got.values, logits[:, got.ids[0].long()])


def test_blocked_ids(backend):
    logits = torch.randn(4, 50)
    logits[:, 9] = INF
    logits[:, 8] = float("nan")
    blocked = torch.tensor([9, 8, 17, 49, 0], dtype=torch.int32)
    assert_equals_oracle(logits, 10, backend, blocked)
    got = topk_lse(logits, 10, blocked=blocked, need_lse=True, backend=backend)
    assert not got.flags.any()
    allowed = [i for i in range(50) if i not in blocked.tolist()]
    # One rounding each of a maximum of order 1, a sum and a log.
    torch.testing.assert_close(got.lse.double(), logits[:, allowed].double().logsumexp(1), rtol=0, atol=2e-6)
    outside = torch.cat([blocked, torch.tensor([-1, 50, 2**31 - 1], dtype=torch.int32)])
    assert torch.equal(topk_lse(logits, 10, blocked=outside, backend=backend).ids, got.ids)


def test_k_beyond_the_allowed_ids_ends_in_empty_slots(backend):
    logits = torch.randn(3, 6)
    got = topk_lse(logits, 9, blocked=torch.tensor([1, 2]), backend=backend)
    assert_equals_oracle(logits, 9, backend, torch.tensor([1, 2]))
    assert (got.ids[:, 4:] == -1).all()
    assert (got.values[:, 4:] == -INF).all()
    assert got.flags.tolist() == [FLAG_SHORT] * 3


def test_everything_blocked(backend):
    got = topk_lse(torch.randn(2, 4), 3, blocked=torch.arange(4), need_lse=True, backend=backend)
    assert got.ids.tolist() == [[-1] * 3] * 2
    assert got.lse.tolist() == [-INF] * 2


def test_gathered_values(backend):
    logits = torch.randn(2, 10).bfloat16()
    logits[1, 4] = float("nan")
    ids = torch.tensor([[3, -1, 9, 3], [4, 10, 2, 0]], dtype=torch.int32)
    got = topk_lse(logits, 2, blocked=torch.tensor([2]), gather_ids=ids, backend=backend).gathered
    x = logits.float()
    assert got.dtype == torch.float32
    assert got.tolist() == [[x[0, 3], -INF, x[0, 9], x[0, 3]], [-INF, -INF, -INF, x[1, 0]]]


def test_lse_of_a_wide_row(backend):
    logits = torch.randn(2, 151936) * 3
    got = topk_lse(logits, 1, need_lse=True, backend=backend).lse
    exact = logits.double().logsumexp(1)
    assert (got - exact).abs().max() <= 2e-6 * (1 + logits.abs().max())


def test_rows_do_not_depend_on_each_other_and_none_is_fine(backend):
    logits = torch.randn(70, 40000)  # more than one chunk of rows
    whole = topk_lse(logits, 8, need_lse=True, backend=backend)
    for part in (slice(0, 1), slice(20, 45), slice(69, 70)):
        got = topk_lse(logits[part], 8, need_lse=True, backend=backend)
        assert torch.equal(got.values, whole.values[part])
        assert torch.equal(got.ids, whole.ids[part])
        assert torch.equal(got.lse, whole.lse[part])
    empty = topk_lse(logits[:0], 8, need_lse=True, gather_ids=torch.zeros(0, 2, dtype=torch.int32), backend=backend)
    assert [x.shape for x in empty] == [(0, 8), (0, 8), (0,), (0, 2), (0,)]


def test_strided_rows_and_inputs_left_alone(backend):
    logits = torch.randn(20, 6).t()
    before = logits.clone()
    assert_equals_oracle(logits, 5, backend, torch.tensor([3]))
    assert torch.equal(logits, before)
    assert not topk_lse(logits.requires_grad_(), 5, backend=backend).values.requires_grad
