"""The rotation and the write into the cache compile for every architecture without spills."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import rope_cache

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize(("heads", "size"), [(14, 64), (16, 128), (64, 128)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows(compile_launches, dtype, heads, size, normed):
    q, k, angle = (torch.zeros(2, width, dtype=dtype) for width in (heads * size, 2 * size, size))
    cache = torch.zeros(2, 2, 8, size, dtype=dtype)
    positions = torch.zeros(2, dtype=torch.int64)
    norms = {"q_norm": angle[0], "k_norm": angle[0], "eps": 1e-6} if normed else {}
    found = compile_launches(lambda: rope_cache(q, k, k, angle, angle, cache, cache, positions, **norms, backend="triton"))
    assert [kernel.kernel for kernel in found] == ["rope_cache_rows"]
