"""The rotation's kernel against the torch backend bit for bit, in Triton's interpreter; the contract is tested in the folder above."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import rotary


# The encoder's heads over more than one tile; fewer keys than queries; heads of one pair; wide heads; numbers that no block divides.
@pytest.mark.parametrize(
    ("positions", "heads", "groups", "size", "pairs"),
    [(5, 20, 20, 64, 16), (3, 14, 2, 128, 64), (40, 1, 3, 2, 1), (7, 3, 5, 250, 50), (13, 9, 7, 33, 5)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_bits_are_the_torch_backends(positions, heads, groups, size, pairs, dtype):
    q, k = torch.randn(positions, heads, size).to(dtype), torch.randn(positions, groups, size).to(dtype)
    cos, sin = torch.randn(positions, pairs).to(dtype), torch.randn(positions, pairs).to(dtype)
    upstream, results = (torch.randn_like(q), torch.randn_like(k)), []
    for backend in ("torch", "triton"):
        leaves = q.clone().requires_grad_(), k.clone().requires_grad_()
        found = rotary(*leaves, cos, sin, backend=backend)
        results.append((*(x.detach() for x in found), *torch.autograd.grad(found, leaves, upstream)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_heads_of_more_features_than_a_tile_run_in_torch():
    q, angle = torch.randn(2, 1, 300), torch.rand(2, 4)
    with pytest.raises(ValueError, match="rotary: the Triton kernel does not take heads of more than 256 features"):
        rotary(q, q, angle, angle, backend="triton")
    assert rotary(q, q, angle, angle)[0].shape == q.shape
