"""The full-vocabulary divergence's kernel compiles for every architecture."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels.common.linear_chunks import ChunkedLinear
from arkfast.kernels.linear_kl.op import DIVERGENCES, Settings, row_pass

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("width", [151_936, 163_958])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_rows_and_gradient(compile_launches, arch, divergence, width):
    linear = ChunkedLinear(torch.zeros(1, 8), torch.zeros(width, 8), 1, fast=True)
    student, teacher, dead = linear.logits(slice(0, 1)), linear.logits(slice(0, 1)), torch.zeros(width, dtype=torch.bool)
    linear.dtype = torch.bfloat16  # as on a GPU for bfloat16 operands
    narrow = linear.d_logits_buffer(slice(0, 1), student)
    settings = Settings(tau=1.0, divergence=divergence, beta=0.5, reduction="mean", rows=1, chosen="triton")
    one = torch.ones(1)

    def run() -> None:
        row_pass(student, teacher, dead, one, one, narrow, settings)
        row_pass(student, teacher, None, one, one, student, settings)
        row_pass(student, teacher, dead, None, one, None, settings)

    def with_ranges() -> None:
        row_pass(student, teacher, dead, one, one, narrow, settings, torch.zeros(1, 2, 2, dtype=torch.int32))

    assert {kernel.kernel for kernel in compile_launches(run)} == {"linear_kl_rows"}
    # The assembler puts one word aside here, so that one more block fits a multiprocessor (72 or 80 registers).
    spills = {"linear_kl_rows": 4} if arch == 90 else None
    assert {kernel.kernel for kernel in compile_launches(with_ranges, spills=spills)} == {"linear_kl_rows"}
