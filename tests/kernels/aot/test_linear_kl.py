"""The full-vocabulary divergence's kernel compiles for every architecture."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels.linear_kl.op import DIVERGENCES, Settings, row_pass

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_rows_and_gradient(compile_launches, divergence):
    width = 151_936
    student, teacher, dead = torch.zeros(1, width), torch.zeros(1, width), torch.zeros(width, dtype=torch.bool)
    settings = Settings(tau=1.0, divergence=divergence, beta=0.5, reduction="mean", rows=1, chosen="triton")
    one = torch.ones(1)

    def run() -> None:
        row_pass(student, teacher, dead, one, one, torch.zeros(1, width, dtype=torch.bfloat16), settings)
        row_pass(student, teacher, None, one, one, student, settings)
        row_pass(student, teacher, dead, None, one, None, settings)

    assert {kernel.kernel for kernel in compile_launches(run)} == {"linear_kl_rows"}
