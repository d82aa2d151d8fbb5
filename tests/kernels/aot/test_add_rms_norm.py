"""The normalisation compiles for every architecture without spills."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import add_rms_norm

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("features", [896, 2048, 16_384])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_with_and_without_a_residual(compile_launches, dtype, features):
    x, weight = torch.zeros(2, features, dtype=dtype), torch.zeros(features, dtype=dtype)

    def run() -> None:
        add_rms_norm(x, x, weight, 1e-6, backend="triton")
        add_rms_norm(x, None, weight, 1e-6, backend="triton")

    assert [kernel.kernel for kernel in compile_launches(run)] == ["add_rms_norm_row"] * 2
