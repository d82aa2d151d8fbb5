"""The log-softmax kernels compile for every architecture."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels.log_softmax.op import row_grad, row_stats

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("width", "padding", "dtype", "out_dtype", "ranges"),
    [
        (151_936, 0, torch.float32, torch.float32, 0),  # a chunk's logits, gradient in place
        (151_936, 0, torch.float32, torch.bfloat16, 0),  # the same under bfloat16 products
        (163_958, 10, torch.float32, torch.bfloat16, 0),  # the same where a chunk's rows are padded
        (163_958, 10, torch.float32, torch.bfloat16, 2),  # the same where rows have ranges of their own
        (163_958, 0, torch.bfloat16, torch.bfloat16, 0),  # a caller's logits with a width that no power of two divides
    ],
)
def test_forward_and_backward(compile_launches, arch, width, padding, dtype, out_dtype, ranges):
    logits, dead = torch.zeros(1, width + padding, dtype=dtype)[:, :width], torch.zeros(width, dtype=torch.bool)
    out = torch.zeros(1, width + padding, dtype=out_dtype)[:, :width]

    own = torch.zeros(1, ranges, 2, dtype=torch.int32) if ranges else None

    def run() -> None:
        for slots, need_entropy, mask in ((1, False, dead), (64, False, None), (128, True, dead)):
            ids, row = torch.zeros(1, slots, dtype=torch.int64), torch.zeros(1)
            stats = row_stats(logits, ids, tau=1.0, dead=mask, ranges=own, need_entropy=need_entropy, chosen="triton")
            grads = (torch.zeros(1, slots), row, row if need_entropy else None)
            row_grad(grads, logits, stats, ids, out, tau=1.0, dead=mask, ranges=own, chosen="triton")

    # At 56 registers one block more fits a multiprocessor of sm_100 than at 57; the assembler puts two words aside for that.
    spills = {"row_log_softmax_fwd": 8} if arch == 100 and padding else None
    kernels = {kernel.kernel for kernel in compile_launches(run, spills=spills)}
    assert kernels == {"row_log_softmax_fwd", "row_log_softmax_bwd", "row_log_softmax_bwd_ids"}
