"""The residual sum and its normalised rows against float64 and against Transformers' module."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import add_rms_norm

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPS = 1e-6


def example(rows: int, features: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of sizes 0.01 to 300, of which fp16 squares would overflow, with a residual and weights around 1."""
    x = torch.randn(rows, features) * torch.logspace(-2, 2.5, rows)[:, None]
    return x.to(dtype), torch.randn(rows, features).to(dtype), (1 + 0.3 * torch.randn(features)).to(dtype)


def exact(total: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """weight · total / √(mean(total²) + eps) in float64, a row at a time."""
    rows = [row / (sum(row.square()) / len(row) + EPS).sqrt() for row in total.double()]
    return weight.double() * torch.stack(rows)


# One feature, primes, fewer and more than a block of them, the widths of the family's decoders, and one row.
@pytest.mark.parametrize(("rows", "features"), [(3, 1), (5, 7), (3, 131), (1, 896), (2, 2048), (2, 1025)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_residual", [True, False])
def test_within_the_roundings_of_the_definition(backend, rows, features, dtype, with_residual):
    x, residual, weight = example(rows, features, dtype)
    normed, total = add_rms_norm(x, residual if with_residual else None, weight, EPS, backend=backend)
    assert normed.dtype == total.dtype == dtype
    assert torch.equal(total, x + residual) if with_residual else total is x
    want = exact(total, weight)
    # Two roundings of half an epsilon each, and float32 sums of positive numbers; below the normal numbers they are absolute.
    info = torch.finfo(dtype)
    bound = (1.01 * info.eps + 1e-6) * want.abs() + info.eps * info.tiny
    assert ((normed.double() - want).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_torch_backends_bits_are_those_of_transformers(dtype):
    qwen2 = pytest.importorskip("transformers.models.qwen2.modeling_qwen2")
    x, residual, weight = example(6, 896, dtype)
    module = qwen2.Qwen2RMSNorm(896, EPS)
    module.weight.data = weight
    with torch.no_grad():
        want = module(x + residual)
    assert torch.equal(add_rms_norm(x, residual, weight, EPS, backend="torch")[0], want)


def test_float64_is_computed_in_float64():
    x, residual, weight = (part.double() for part in example(4, 33, torch.float32))
    normed, total = add_rms_norm(x, residual, weight, EPS)
    torch.testing.assert_close(normed, exact(total, weight), rtol=1e-14, atol=0)


def test_a_row_of_zeros_is_zeros_and_nan_stays_in_its_row(backend):
    x, weight = torch.randn(4, 40), torch.randn(40)
    x[1], x[2, 5] = 0.0, float("nan")
    normed, _ = add_rms_norm(x, torch.zeros(4, 40), weight, EPS, backend=backend)
    assert not normed[1].any()
    assert normed[2].isnan().all()
    assert normed[[0, 3]].isfinite().all()


def test_rows_that_are_parts_of_wider_ones(backend):
    wide, weight = torch.randn(5, 90), torch.randn(60)[::2]
    x, residual = wide[:, 3:33], torch.randn(30, 5).t()
    got = add_rms_norm(x, residual, weight, EPS, backend=backend)
    want = add_rms_norm(x.contiguous(), residual.contiguous(), weight.contiguous(), EPS, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_rows_bits_do_not_depend_on_the_others(backend):
    x, residual, weight = example(7, 200, torch.bfloat16)
    together = add_rms_norm(x, residual, weight, EPS, backend=backend)
    alone = add_rms_norm(x[3:4], residual[3:4], weight, EPS, backend=backend)
    assert all(torch.equal(a[3:4], b) for a, b in zip(together, alone, strict=True))


def test_no_rows(backend):
    normed, total = add_rms_norm(torch.zeros(0, 8), torch.zeros(0, 8), torch.ones(8), EPS, backend=backend)
    assert normed.shape == total.shape == (0, 8)
