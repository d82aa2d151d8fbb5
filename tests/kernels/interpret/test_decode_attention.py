"""The attention's kernels where a row has several parts, and at shapes that hurt, in Triton's interpreter; the contract is tested above."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import decode_attention
from arkfast.kernels.decode_attention.op import MAX_GROUP, MAX_SIZE, MAX_SIZE_FLOAT32, SPLIT

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def example(lens: list[int], length: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Small heads, since the interpreter's time goes by blocks of keys."""
    rows = len(lens)
    q, keys, values = torch.randn(rows, 4, 16), torch.randn(rows, 2, length, 16), torch.randn(rows, 2, length, 16)
    return q.to(dtype), keys.to(dtype), values.to(dtype), torch.tensor(lens)


# A key less than a part, a part, a key more, the first key of the third part, and nothing.
@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_are_put_together(dtype):
    case = example([SPLIT - 1, SPLIT, SPLIT + 1, 2 * SPLIT + 1, 1, 0], 2 * SPLIT + 5, dtype)
    got = decode_attention(*case, backend="triton")
    want = decode_attention(*(x.double() if x.is_floating_point() else x for x in case), backend="torch")
    # Weights and sum are each rounded to the dtype; values are at most 5 and sums of hundreds of them far below.
    torch.testing.assert_close(got.double(), want, rtol=torch.finfo(dtype).eps, atol=max(1e-6, torch.finfo(dtype).eps / 2))
    assert not got[5].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_longer_cache_changes_no_bit(dtype):
    """One kernel where the limit is a part, two where it is more, and the same answer."""
    q, keys, values, lens = example([SPLIT, 70, 1], 2 * SPLIT, dtype)
    results = [decode_attention(q, keys, values, lens, limit=limit, backend="triton") for limit in (SPLIT, SPLIT + 1, 2 * SPLIT)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_nothing_past_a_rows_length_or_the_limit_is_read():
    q, keys, values, lens = example([SPLIT + 30, 3, 0], 2 * SPLIT, torch.float32)
    want = decode_attention(q, keys, values, lens, backend="triton")
    past = (torch.arange(2 * SPLIT) >= lens[:, None])[:, None, :, None]
    got = decode_attention(q, keys.masked_fill(past, float("nan")), values.masked_fill(past, float("nan")), lens, backend="triton")
    assert torch.equal(got, want)
    shown = decode_attention(q, keys, values, lens, limit=SPLIT + 29, backend="triton")
    assert shown.isnan().all(1).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("heads", "size", "dtype", "reason"),
    [
        (1, MAX_SIZE + 1, torch.bfloat16, "torch.bfloat16 heads of more than 256 features"),
        (1, MAX_SIZE_FLOAT32 + 1, torch.float32, "torch.float32 heads of more than 128 features"),
        (MAX_GROUP + 1, 4, torch.float32, "groups of more than 16 heads"),
    ],
)
def test_shapes_that_the_kernel_does_not_take_run_in_torch(heads, size, dtype, reason):
    q, cache, lens = torch.randn(2, heads, size).to(dtype), torch.randn(2, 1, 5, size).to(dtype), torch.tensor([5, 2])
    assert decode_attention(q, cache, cache, lens).isfinite().all()
    with pytest.raises(ValueError, match=f"decode_attention: the Triton kernel does not take {reason}"):
        decode_attention(q, cache, cache, lens, backend="triton")


# The widest heads and the largest group that it does take.
@pytest.mark.parametrize(("size", "dtype"), [(MAX_SIZE, torch.bfloat16), (MAX_SIZE_FLOAT32, torch.float32)])
def test_the_widest_heads(size, dtype):
    q, cache, lens = torch.randn(1, MAX_GROUP, size).to(dtype), torch.randn(1, 1, 40, size).to(dtype), torch.tensor([37])
    want = decode_attention(q.double(), cache.double(), cache.double(), lens, backend="torch")
    got = decode_attention(q, cache, cache, lens, backend="triton")
    torch.testing.assert_close(got.double(), want, rtol=torch.finfo(dtype).eps, atol=max(1e-5, torch.finfo(dtype).eps))
