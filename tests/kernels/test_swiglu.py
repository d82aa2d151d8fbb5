"""The gated product against float64 and against the two operations that Transformers runs."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from arkfast.kernels import swiglu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


# One feature, primes, a block and one more, and the widths of the family's decoders.
@pytest.mark.parametrize(("rows", "width"), [(3, 1), (5, 7), (2, 131), (2, 1025), (1, 4864), (1, 11_008)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_within_the_roundings_of_the_definition(backend, rows, width, dtype):
    gate, up = (3 * torch.randn(rows, width)).to(dtype), torch.randn(rows, width).to(dtype)
    out = swiglu(gate, up, backend=backend)
    assert out.dtype == dtype
    want = gate.double() / (1 + (-gate.double()).exp()) * up.double()
    info = torch.finfo(dtype)
    # Two roundings of half an epsilon each and an exponential of |gate| ≤ 15; silu itself may fall below the normal numbers.
    bound = (1.01 * info.eps + 4e-6) * want.abs() + info.eps * info.tiny * (1 + up.double().abs())
    assert ((out.double() - want).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_roundings_are_those_of_transformers(backend, dtype):
    gate, up = (3 * torch.randn(4, 500)).to(dtype), torch.randn(4, 500).to(dtype)
    want = F.silu(gate) * up
    out = swiglu(gate, up, backend=backend)
    if backend == "torch":
        assert torch.equal(out, want)
        return
    # The exponential may differ in its last bits, which a 2-byte rounding rarely lets through.
    differs = (out.double() - want.double()).abs()
    assert (differs <= torch.finfo(dtype).eps * want.double().abs() * (8 if dtype == torch.float32 else 2)).all()
    if dtype != torch.float32:
        assert (differs > 0).float().mean() < 0.01


def test_float64_is_computed_in_float64():
    gate, up = torch.randn(2, 9).double(), torch.randn(2, 9).double()
    torch.testing.assert_close(swiglu(gate, up), gate / (1 + (-gate).exp()) * up, rtol=1e-14, atol=0)


def test_gates_far_from_zero_and_nan(backend):
    gate = torch.tensor([[-200.0, -90.0, 0.0, 90.0, 200.0, float("nan"), 1.0]])
    out = swiglu(gate, torch.full((1, 7), 2.0), backend=backend)[0]
    assert out[:2].abs().max() < 1e-30
    assert out[2:5].tolist() == [0.0, 180.0, 400.0]
    assert out[5].isnan()
    assert out[6].isfinite()


def test_halves_of_one_product_and_columns(backend):
    """The two inputs of a fused projection, and rows whose features are not neighbours."""
    both = torch.randn(5, 60)
    gate, up = both.chunk(2, 1)
    want = swiglu(gate.contiguous(), up.contiguous(), backend=backend)
    torch.testing.assert_close(swiglu(gate, up, backend=backend), want, rtol=1e-6, atol=1e-7)
    columns = torch.randn(30, 5).t()
    # torch has another exponential for numbers that are not neighbours.
    want = swiglu(columns.contiguous(), up, backend=backend)
    torch.testing.assert_close(swiglu(columns, up, backend=backend), want, rtol=1e-6, atol=1e-7)


def test_the_inputs_are_left_as_they_were(backend):
    gate, up = torch.randn(3, 10), torch.randn(3, 10)
    before = gate.clone(), up.clone()
    swiglu(gate, up, backend=backend)
    assert torch.equal(gate, before[0])
    assert torch.equal(up, before[1])


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_nothing_to_do(backend, shape):
    assert swiglu(torch.zeros(shape), torch.zeros(shape), backend=backend).shape == shape
