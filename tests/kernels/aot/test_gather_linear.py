"""The gathered products compile for every architecture without spills."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import gather_linear
from arkfast.kernels.gather_linear.op import launch_hidden_grad

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("features", [896, 2048])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_forward_and_hidden_gradient(compile_launches, dtype, features):
    hidden, weight = torch.zeros(2, features, dtype=dtype, requires_grad=True), torch.zeros(8, features, dtype=dtype)

    def run() -> None:
        for slots in (1, 64, 100):
            gather_linear(hidden, weight, torch.zeros(2, slots, dtype=torch.int32), backend="triton").sum().backward()
        launch_hidden_grad(torch.zeros(2, 64), weight, torch.zeros(2, 64, dtype=torch.int32), dtype, torch.zeros(2))

    assert {kernel.kernel for kernel in compile_launches(run)} == {"gather_linear_scores", "gather_linear_hidden_grad"}
