"""The normalisation's kernel at the edges of its blocks, in Triton's interpreter; the contract is tested in the folder above."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import add_rms_norm
from arkfast.kernels.add_rms_norm.op import MAX_FEATURES


# A block and one feature more of each configuration, and the widest row.
@pytest.mark.parametrize("features", [16, 17, 1024, 4096, 4097, MAX_FEATURES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_widths(features, dtype):
    x, residual, weight = (torch.randn(size).to(dtype) for size in ((2, features), (2, features), (features,)))
    normed, total = add_rms_norm(x, residual, weight, 1e-6, backend="triton")
    want, sums = add_rms_norm(x, residual, weight, 1e-6, backend="torch")
    assert torch.equal(total, sums)
    # Another order of a sum of positive numbers, and where that moves a rounding, in few places, an epsilon.
    torch.testing.assert_close(normed, want, rtol=1e-6 if dtype == torch.float32 else 2.0**-7, atol=0)
    if dtype != torch.float32:
        assert (normed != want).float().mean() < 0.01


def test_rows_too_wide_for_the_kernel_run_in_torch():
    x, weight = torch.randn(1, MAX_FEATURES + 1), torch.ones(MAX_FEATURES + 1)
    assert add_rms_norm(x, None, weight, 1e-6)[0].isfinite().all()
    with pytest.raises(ValueError, match="add_rms_norm: the Triton kernel does not take rows of more than 16384 features"):
        add_rms_norm(x, None, weight, 1e-6, backend="triton")
