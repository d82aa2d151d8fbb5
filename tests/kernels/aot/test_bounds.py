"""What the hot loops cost on a GPU of capability 9.0, so that a regression is seen without one.

A bound is what was counted with the pinned Triton, and a tenth more. Instructions are those of the longest loop, divided by the values that
a thread takes in one pass; branches within it count whether they are taken or not.
"""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import opd_union_kl, rotary, row_log_softmax, sparse_weight_grad, topk_lse
from arkfast.kernels.row_topk.launcher import BLOCK

pytestmark = pytest.mark.slow
THREADS = 128


@pytest.mark.parametrize("arch", [90], ids=lambda arch: f"sm_{arch}")
def test_the_pass_over_a_row_of_logits(compile_launches):
    """12.8 instructions a value before NaN was looked for by a maximum that lets it through; a quarter are of the blocked ids' branch."""
    logits, blocked = torch.empty(2, 151680, dtype=torch.bfloat16), torch.zeros(300, dtype=torch.int32)
    kernels = {kernel.kernel: kernel for kernel in compile_launches(lambda: topk_lse(logits, 32, blocked=blocked, backend="triton"))}
    stats = kernels["row_stats"]
    assert stats.loop / (BLOCK / THREADS) <= 10.9
    assert stats.load == 128
    assert stats.registers <= 80, "six blocks of 128 threads a multiprocessor"


@pytest.mark.parametrize("arch", [90], ids=lambda arch: f"sm_{arch}")
def test_the_sums_of_a_gradient(compile_launches):
    """591 instructions a run while eight rows were asked for together and places were divided in 64 bits."""
    grad, ids, hidden = torch.zeros(4096, 64), torch.zeros(4096, 64, dtype=torch.int32), torch.empty(4096, 1024, dtype=torch.bfloat16)
    found = compile_launches(lambda: sparse_weight_grad(grad, ids, hidden, 151936, dtype=torch.bfloat16, backend="triton"))
    runs = next(kernel for kernel in found if kernel.kernel == "weight_grad_runs")
    assert runs.loop <= 385
    assert runs.load == 128
    assert runs.registers <= 48


@pytest.mark.parametrize("arch", [90], ids=lambda arch: f"sm_{arch}")
def test_the_rotation_of_queries_and_keys(compile_launches):
    """No loop: a program turns one tile, whose rows are loaded 16 bytes a thread."""
    q, angle = torch.zeros(500, 20, 64, dtype=torch.bfloat16), torch.zeros(500, 16, dtype=torch.bfloat16)
    (rows,) = compile_launches(lambda: rotary(q, q, angle, angle, backend="triton"))
    assert rows.loop == 0
    assert rows.load == 128
    assert rows.registers <= 48
    assert rows.shared <= 4096


@pytest.mark.parametrize("arch", [90], ids=lambda arch: f"sm_{arch}")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_the_pass_of_a_log_softmax(compile_launches, dtype):
    """No barrier stands in the loop: each lane has a maximum of its own. 48 and 52 registers while the threads met for each block."""
    logits, ids = torch.zeros(2, 151680, dtype=dtype), torch.zeros(2, 64, dtype=torch.int64)
    (forward,) = compile_launches(lambda: row_log_softmax(logits, ids, backend="triton"))
    assert forward.kernel == "row_log_softmax_fwd"
    assert forward.loop / (2048 / THREADS) <= 13.6
    assert forward.load == 128
    assert forward.registers <= 40, "twelve blocks of 128 threads a multiprocessor"


@pytest.mark.parametrize("arch", [90], ids=lambda arch: f"sm_{arch}")
def test_the_loss_of_a_position(compile_launches):
    """78 registers where the assembler chooses, with which three programs fit a multiprocessor."""
    ids, scores = torch.zeros(2, 32, dtype=torch.int32), torch.zeros(2, 64)
    hidden, weight = (torch.zeros(rows, 1024, dtype=torch.bfloat16, requires_grad=True) for rows in (2, 8))
    (sparse,) = compile_launches(lambda: opd_union_kl(hidden, weight, ids, ids, scores, backend="triton"))
    assert sparse.registers <= 64, "four programs of 256 threads a multiprocessor"
    assert sparse.loop / (8192 / 256) <= 7.4
    assert sparse.load == 128
    assert sparse.shared <= 2048
