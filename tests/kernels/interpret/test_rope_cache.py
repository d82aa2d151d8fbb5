"""The rotation's kernel against the torch backend bit for bit, in Triton's interpreter; the contract is tested in the folder above."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import rope_cache


# Fewer and more heads and features than a block has, and as many.
@pytest.mark.parametrize(("heads", "groups", "size"), [(1, 1, 2), (14, 2, 64), (9, 3, 34), (16, 16, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_bits_are_the_torch_backends(heads, groups, size, dtype):
    q, k, v, cos, sin = (torch.randn(3, width).to(dtype) for width in (heads * size, groups * size, groups * size, size, size))
    results = []
    for backend in ("torch", "triton"):
        keys, values = torch.zeros(4, groups, 6, size, dtype=dtype), torch.zeros(4, groups, 6, size, dtype=dtype)
        out = rope_cache(q, k, v, cos, sin, keys, values, torch.tensor([0, 5, 2]), backend=backend)
        results.append((out, keys, values))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("heads", "groups", "size"), [(1, 1, 2), (14, 2, 64), (9, 3, 34), (16, 16, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_normalised_heads_are_the_torch_backends(heads, groups, size, dtype):
    """But for the order in which the squares are summed: float32 heads differ in their last bits, and roundings of narrow ones seldom."""
    q, k, v, cos, sin = (torch.randn(3, width).to(dtype) for width in (heads * size, groups * size, groups * size, size, size))
    q_norm, k_norm = (torch.randn(size).to(dtype) for _ in range(2))
    results = []
    for backend in ("torch", "triton"):
        keys, values = torch.zeros(4, groups, 6, size, dtype=dtype), torch.zeros(4, groups, 6, size, dtype=dtype)
        at = torch.tensor([0, 5, 2])
        out = rope_cache(q, k, v, cos, sin, keys, values, at, q_norm=q_norm, k_norm=k_norm, eps=1e-5, backend=backend)
        results.append((out, keys, values))
    (out, keys, values), (got, got_keys, got_values) = results
    for a, b in ((out, got), (keys, got_keys)):
        units = 6 if dtype == torch.float32 else 2
        assert ((a.double() - b.double()).abs() <= units * torch.finfo(dtype).eps * a.double().abs().amax(-1, keepdim=True)).all()
        assert ((a != b).double().mean() < 0.02) or dtype == torch.float32
    assert torch.equal(values, got_values)


def test_caches_whose_features_are_no_neighbours_run_in_torch():
    q, cos = torch.randn(2, 8), torch.randn(2, 4)
    keys, values = torch.zeros(2, 1, 4, 6).transpose(2, 3), torch.zeros(2, 1, 6, 4)
    arguments = q, q[:, :4], q[:, 4:], cos, cos, keys, values, torch.tensor([5, 0])
    with pytest.raises(ValueError, match="rope_cache: the Triton kernel does not take caches whose features are not neighbours in memory"):
        rope_cache(*arguments, backend="triton")
    assert not keys.any()
    rope_cache(*arguments)
    assert keys.any(3).nonzero().tolist() == [[0, 0, 5], [1, 0, 0]]
