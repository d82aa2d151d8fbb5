"""Attention of one query a row against softmax written out in float64, and for what must not matter."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import decode_attention

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def example(
    lens: list[int], heads: int, groups: int, size: int, dtype: torch.dtype, length: int = 70
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(q, keys, values, lens) with caches of one row more than there are queries."""
    q = torch.randn(len(lens), heads, size)
    keys, values = (torch.randn(len(lens) + 1, groups, length, size) for _ in range(2))
    return q.to(dtype), keys.to(dtype), values.to(dtype), torch.tensor(lens, dtype=torch.int64)


def exact(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, lens: torch.Tensor, scale: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, Hq · D] in float64, a row and a head at a time, and Σ p · |v|, which the rounding errors go by."""
    rows, heads, size = q.shape
    want, error = (torch.zeros(rows, heads, size, dtype=torch.float64, device=q.device) for _ in range(2))
    for t, n in enumerate(lens.tolist()):
        for h in range(heads):
            kv = h // (heads // keys.shape[1])
            scores = keys[t, kv, :n].double() @ q[t, h].double() * (size**-0.5 if scale is None else scale)
            p = torch.exp(scores - scores.max())
            p = p / p.sum()
            want[t, h], error[t, h] = p @ values[t, kv, :n].double(), p @ values[t, kv, :n].double().abs()
    return want.flatten(1), error.flatten(1)


def bound(dtype: torch.dtype, error: torch.Tensor) -> torch.Tensor:
    """The weights and the sum are each rounded by half an epsilon; scores of size 3 are float32 sums."""
    return (1.01 * torch.finfo(dtype).eps + 1e-5) * error


# The decoders of the family, groups of one head and of odd numbers, head sizes that no block divides, one query, lengths of one key.
@pytest.mark.parametrize(
    ("lens", "heads", "groups", "size"),
    [([70, 1, 33], 14, 2, 64), ([64], 16, 2, 128), ([1], 14, 2, 64), ([5, 65], 3, 3, 20), ([2, 69, 31, 64], 10, 2, 33), ([7], 1, 1, 1)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_within_the_roundings_of_the_definition(backend, lens, heads, groups, size, dtype):
    case = example(lens, heads, groups, size, dtype)
    out = decode_attention(*case, backend=backend)
    want, error = exact(*case)
    assert out.shape == (len(lens), heads * size)
    assert out.dtype == dtype
    assert ((out.double() - want).abs() <= bound(dtype, error)).all()


def test_float64_is_computed_in_float64():
    case = example([9, 70], 6, 2, 16, torch.float64)
    torch.testing.assert_close(decode_attention(*case), exact(*case)[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_further_from_the_truth_than_repeated_keys_in_the_same_dtype(backend, dtype):
    q, keys, values, lens = example([70, 50, 20], 14, 2, 64, dtype)
    want, _ = exact(q, keys, values, lens)
    all_keys, all_values = (x[:3].repeat_interleave(7, 1) for x in (keys, values))
    scores = (q[:, :, None] @ all_keys.transpose(2, 3)) * 64**-0.5
    scores = scores.masked_fill(torch.arange(70) >= lens[:, None, None, None], float("-inf"))
    plain = (scores.softmax(-1, dtype=torch.float32).to(dtype) @ all_values).flatten(1)
    ours = decode_attention(q, keys, values, lens, backend=backend)
    assert (ours.double() - want).norm() <= 1.05 * (plain.double() - want).norm()


def test_one_key_is_its_value(backend):
    q, keys, values, lens = example([1, 1], 4, 2, 16, torch.bfloat16)
    out = decode_attention(q, keys, values, lens, backend=backend).unflatten(1, (2, 2, 16))
    assert torch.equal(out, values[:2, :, :1].expand(2, 2, 2, 16))


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_scale(backend, scale):
    case = example([40, 70], 4, 2, 16, torch.float32)
    want, error = exact(*case, scale=scale)
    # Scores of size 12 at the larger scale, and errors with them.
    assert ((decode_attention(*case, scale=scale, backend=backend).double() - want).abs() <= 3e-5 * error).all()


def test_scores_far_from_zero_do_not_overflow(backend):
    q, keys, values, lens = example([70, 3], 4, 2, 16, torch.float32)
    case = 100 * q, keys, values, lens
    want, error = exact(*case)
    out = decode_attention(*case, backend=backend)
    # Scores of size 300 in float32: 300 · 16 · 2⁻²⁴ each at worst.
    assert ((out.double() - want).abs() <= 6e-4 * error).all()


def test_what_stands_past_a_rows_length_does_not_matter(backend):
    """Large finite numbers where the torch backend looks and gives no weight; NaN and infinities where the kernel never looks."""
    q, keys, values, lens = example([1, 40, 70], 6, 2, 20, torch.float32)
    want = decode_attention(q, keys, values, lens, backend=backend)
    past = (torch.arange(70) >= torch.cat([lens, lens.new_zeros(1)])[:, None])[:, None, :, None]
    for rubbish in (1e4,) if backend == "torch" else (1e4, float("nan"), float("inf")):
        got = decode_attention(q, keys.masked_fill(past, rubbish), values.masked_fill(past, rubbish), lens, backend=backend)
        assert torch.equal(got, want)


def test_a_limit_hides_what_lies_past_it_and_changes_nothing_else(backend):
    q, keys, values, lens = example([1, 40, 33], 6, 2, 20, torch.float32)
    want = decode_attention(q, keys, values, lens, backend=backend)
    keys[:, :, 40:], values[:, :, 40:] = float("nan"), float("nan")
    got = decode_attention(q, keys, values, lens, limit=40, backend=backend)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_a_row_longer_than_the_limit_shows(backend):
    case = example([30, 41, 40], 4, 2, 16, torch.float32)
    out = decode_attention(*case, limit=40, backend=backend)
    assert out.isnan().all(1).tolist() == [False, True, False]
    assert out[[0, 2]].isfinite().all()


@pytest.mark.parametrize("length", [0, -3])
def test_a_row_without_keys_is_zeros(backend, length):
    q, keys, values, lens = example([length, 40], 4, 2, 16, torch.bfloat16)
    out = decode_attention(q, keys, values, lens.int(), backend=backend)
    assert not out[0].any()
    assert out[1].any()


def test_nan_in_a_key_that_is_looked_at_shows_in_its_row_alone(backend):
    q, keys, values, lens = example([30, 40], 4, 2, 16, torch.float32)
    keys[0, 1, 10] = float("nan")
    out = decode_attention(q, keys, values, lens, backend=backend).unflatten(1, (2, 32))
    assert out[0, 1].isnan().all()
    assert out[0, 0].isfinite().all()
    assert out[1].isfinite().all()


def test_a_rows_bits_do_not_depend_on_the_others(backend):
    q, keys, values, lens = example([5, 70, 1, 44], 14, 2, 64, torch.bfloat16)
    together = decode_attention(q, keys, values, lens, backend=backend)
    alone = decode_attention(q[3:], keys[3:4], values[3:4], lens[3:], backend=backend)
    assert torch.equal(together[3:], alone)


def test_caches_of_any_layout(backend):
    """A layer of a cache of many, and one whose positions stand before its heads; queries that are a part of a wider product."""
    q, keys, values, lens = example([20, 70], 4, 2, 16, torch.float32)
    want = decode_attention(q, keys, values, lens, backend=backend)
    layer = torch.stack([values, keys])[1]
    before_heads = values.transpose(1, 2).contiguous().transpose(1, 2)
    part = torch.cat([q, q], 1)[:, :4]
    got = decode_attention(part, layer, before_heads, lens.repeat_interleave(2)[::2], backend=backend)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_no_rows(backend):
    q, keys, values, lens = example([], 4, 2, 16, torch.float32)
    assert decode_attention(q, keys, values, lens, backend=backend).shape == (0, 64)
