"""The gated product compiles for every architecture without spills."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import swiglu

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("features", [4864, 11_008])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows(compile_launches, dtype, features):
    gate = torch.zeros(2, features, dtype=dtype)
    assert [kernel.kernel for kernel in compile_launches(lambda: swiglu(gate, gate, backend="triton"))] == ["swiglu_rows"]
