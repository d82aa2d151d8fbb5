"""Chunks of a linear layer's logits: where gradients are written, and which rows reach the weight's gradient."""

from __future__ import annotations

import torch

from arkfast.kernels.common.linear_chunks import ROW_ALIGNMENT, ChunkedLinear
from arkfast.kernels.common.recording import recorded

WIDTH = 2 * ROW_ALIGNMENT + 22
"""Like 163,958, no multiple of what a row is padded to."""


def test_narrow_gradients_have_aligned_rows_and_one_buffer():
    linear = ChunkedLinear(torch.randn(5, 8), torch.randn(WIDTH, 8), 3, fast=True)
    linear.dtype = torch.bfloat16  # as on a GPU for bfloat16 operands, whose logits are float32
    logits, buffers = torch.randn(3, WIDTH), []
    for span in linear.spans():
        buffer = linear.d_logits_buffer(span, logits)
        assert (buffer.shape, buffer.dtype) == ((3, WIDTH), torch.bfloat16)
        assert buffer.stride() == (3 * ROW_ALIGNMENT, 1)
        assert not buffer[span.stop - span.start :].any()
        buffers.append(buffer.fill_(1.0).data_ptr())
    assert len(buffers) == 2
    assert len(set(buffers)) == 1


def test_wide_gradients_are_written_over_the_logits():
    linear = ChunkedLinear(torch.randn(5, 8), torch.randn(WIDTH, 8), 3, fast=True)
    for span in linear.spans():
        logits = linear.logits(span)
        assert logits.stride() == (3 * ROW_ALIGNMENT, 1)
        assert linear.d_logits_buffer(span, logits) is logits


def test_idle_rows_stay_out_of_the_weights_gradient():
    hidden, weight = torch.randn(5, 8), torch.randn(11, 8)
    idle = torch.tensor([False, True, False, False, True])
    d_logits = torch.randn(5, 11).masked_fill_(idle[:, None], 0.0)
    want = d_logits @ weight, d_logits.t() @ hidden
    hidden[1], hidden[4] = float("nan"), float("inf")
    linear = ChunkedLinear(hidden, weight, 2, fast=True, grads=(True, True))
    for span in linear.spans():
        d = torch.zeros(2, 11)
        d[: span.stop - span.start] = d_logits[span]
        linear.collect(span, d, idle[span])
    for got, true in zip(linear.gradients(), want, strict=True):
        torch.testing.assert_close(got, true, rtol=1e-5, atol=1e-5)


def test_what_autograd_does_not_record_wants_no_gradient():
    x = torch.randn(2, requires_grad=True)
    assert recorded(x)[0] is x
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert not recorded(x)[0].requires_grad
