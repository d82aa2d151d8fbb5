"""The rotation compiles for every architecture without spills, both ways."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import rotary

pytestmark = pytest.mark.slow


# The encoder's heads, wider ones, and some that no load of more than two bytes divides.
@pytest.mark.parametrize(
    ("heads", "size", "dtype"), [(20, 64, torch.bfloat16), (20, 64, torch.float32), (16, 128, torch.bfloat16), (3, 250, torch.bfloat16)]
)
def test_rows(compile_launches, heads, size, dtype):
    q, k = (torch.zeros(2, heads, size, dtype=dtype, requires_grad=True) for _ in range(2))
    angle = torch.zeros(2, size // 4, dtype=dtype)

    def run() -> None:
        turned = rotary(q, k, angle, angle, backend="triton")
        (turned[0].sum() + turned[1].sum()).backward()

    found = compile_launches(run, listed=True)
    assert [kernel.kernel for kernel in found] == ["rotary_rows"] * 2
    assert ["BACK=False" in kernel.constants for kernel in found] == [True, False]
    if size != 250:
        assert all(kernel.listing.load == 128 for kernel in found), "whole rows are loaded 16 bytes a thread"
