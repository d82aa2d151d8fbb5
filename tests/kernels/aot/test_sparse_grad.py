"""The segment sums compile for every architecture without spills."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import sparse_weight_grad

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("features", [896, 2048])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sorted_and_atomic(compile_launches, dtype, features):
    grad, ids, hidden = torch.zeros(8, 64), torch.zeros(8, 64, dtype=torch.int32), torch.zeros(8, features, dtype=dtype)
    extra = {"extra_ids": torch.zeros(9, dtype=torch.int64), "extra_rows": torch.zeros(9, features, dtype=dtype)}

    def run() -> None:
        sparse_weight_grad(grad, ids, hidden, 4, dtype=dtype, backend="triton")
        sparse_weight_grad(grad, ids, hidden, 4, out=torch.zeros(4, features), backend="triton", **extra)
        sparse_weight_grad(grad, ids, hidden, 4, mode="atomic", backend="triton", **extra)

    names = {"weight_grad_runs", "weight_grad_pieces", "weight_grad_long_runs", "weight_grad_atomic"}
    assert {kernel.kernel for kernel in compile_launches(run)} == names
