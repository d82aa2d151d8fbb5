"""The full-vocabulary divergences on a GPU: accuracy, the same bits again, no wait, bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from arkfast.kernels import linear_kl

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
VOCABULARY = 151_936
DIVERGENCES = ["forward_kl", "reverse_kl", "jsd"]


@contextmanager
def nothing_waits() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def example(positions: int, vocabulary: int = VOCABULARY) -> list[torch.Tensor]:
    """bf16 student and teacher with logits of standard deviation 2; the student's tensors take gradients."""
    sizes = (64, 128)
    tensors = []
    for features in sizes:
        tensors.append(torch.randn(positions, features, device="cuda").bfloat16())
        tensors.append((2 / features**0.5 * torch.randn(vocabulary, features, device="cuda")).bfloat16())
    return [tensors[0].requires_grad_(), tensors[1].requires_grad_(), *tensors[2:]]


@pytest.mark.parametrize("divergence", DIVERGENCES)
# The second width is no multiple of 16; 450 positions are a full chunk and a padded one.
@pytest.mark.parametrize("vocabulary", [VOCABULARY, 163_958])
def test_equals_float64(divergence, vocabulary):
    tensors = example(450, vocabulary)
    loss = linear_kl(*tensors, divergence=divergence, backend="triton")
    grads = torch.autograd.grad(loss, tensors[:2])
    true = [x.detach().double().requires_grad_(x.requires_grad) for x in tensors]
    log_q, log_p = ((h @ w.t()).log_softmax(1) for h, w in (true[:2], true[2:]))
    if divergence == "jsd":
        log_m = torch.logaddexp(log_p, log_q) - torch.tensor(2.0).log()
        rows = 0.5 * ((log_p.exp() * (log_p - log_m)).sum(1) + (log_q.exp() * (log_q - log_m)).sum(1))
    else:
        a, b = (log_p, log_q) if divergence == "forward_kl" else (log_q, log_p)
        rows = (a.exp() * (a - b)).sum(1)
    want = rows.mean()
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=0)
    for mine, exact in zip(grads, torch.autograd.grad(want, true[:2]), strict=True):
        assert (mine.double() - exact).norm() <= 4e-3 * exact.norm()


def test_the_same_bits_again_and_for_fewer_rows():
    tensors = example(700)
    runs = []
    for _ in range(2):
        rows = linear_kl(*tensors, reduction="none", divergence="jsd", backend="triton")
        runs.append((rows, *torch.autograd.grad(rows.sum(), tensors[:2])))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    for n in (1, 441, 442):
        part = linear_kl(tensors[0][:n], tensors[1], tensors[2][:n], tensors[3], reduction="none", divergence="jsd", backend="triton")
        assert torch.equal(part, runs[0][0][:n])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nothing_waits_for_the_device(reduction):
    tensors = example(500)
    blocked = torch.arange(VOCABULARY - 300, VOCABULARY, dtype=torch.int32, device="cuda")
    row_weight = torch.rand(500, device="cuda")

    def step() -> None:
        loss = linear_kl(*tensors, blocked=blocked, row_weight=row_weight, reduction=reduction, backend="triton")
        torch.autograd.grad(loss.sum(), tensors[:2])

    step()
    with nothing_waits():
        step()


def test_memory_does_not_grow_with_positions_by_the_vocabulary():
    peaks = []
    for positions in (1024, 4096):
        tensors = example(positions)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.autograd.grad(linear_kl(*tensors, backend="triton"), tensors[:2])
        peaks.append(torch.cuda.max_memory_allocated() - before)
    # 64 features in float32 and bf16, and a few numbers, for each of 3072 positions more.
    assert peaks[1] - peaks[0] <= 3072 * 1024
