"""The log-softmax on a GPU: accuracy at a real vocabulary, the same bits again, no wait, a graph, bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from arkfast.kernels import linear_log_softmax, linear_logprob, row_log_softmax

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
VOCABULARY = 151_936


@contextmanager
def nothing_waits() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def example(positions: int, vocabulary: int = VOCABULARY) -> tuple[torch.Tensor, ...]:
    """bf16 hidden states and head with logits of standard deviation 3, one target each."""
    hidden = torch.randn(positions, 64, device="cuda").bfloat16().requires_grad_()
    weight = (3 / 8 * torch.randn(vocabulary, 64, device="cuda")).bfloat16().requires_grad_()
    return hidden, weight, torch.randint(0, vocabulary - 400, (positions, 1), device="cuda")


def gradients(logp: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(logp.sum(), inputs)


# The second width is no multiple of 16; 500 positions are a full chunk and a padded one.
@pytest.mark.parametrize("vocabulary", [VOCABULARY, 163_958])
def test_equals_float64(vocabulary):
    hidden, weight, ids = example(500, vocabulary)
    logp = linear_log_softmax(hidden, weight, ids, backend="triton")
    true = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    want = (true[0] @ true[1].t()).log_softmax(1).gather(1, ids)
    assert (logp - want).abs().max() <= 4e-6 * (1 + float(want.abs().max()))
    for mine, exact in zip(gradients(logp, hidden, weight), gradients(want, *true), strict=True):
        assert (mine.double() - exact).norm() <= 4e-3 * exact.norm()


def test_logits_of_any_dtype_and_ids_that_repeat():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        logits = (3 * torch.randn(7, 5003, device="cuda")).to(dtype).requires_grad_()
        ids = torch.randint(-1, 60, (7, 64), device="cuda")
        true = logits.detach().double().requires_grad_()
        logp = row_log_softmax(logits, ids, backend="triton")
        want = true.log_softmax(1).gather(1, ids.clamp_min(0)) * (ids >= 0)
        torch.testing.assert_close(logp.double(), want, rtol=0, atol=1e-5)
        bound = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}[dtype]
        (mine,), (exact,) = gradients(logp, logits), gradients(want, true)
        assert (mine.double() - exact).norm() <= bound * exact.norm()


def test_the_same_bits_again_and_for_fewer_rows():
    hidden, weight, ids = example(700)
    runs = []
    for _ in range(2):
        logp = linear_log_softmax(hidden, weight, ids, backend="triton")
        runs.append((logp, *gradients(logp, hidden, weight)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    for n in (1, 441, 442):
        assert torch.equal(linear_log_softmax(hidden[:n], weight, ids[:n], backend="triton"), runs[0][0][:n])


def test_nothing_waits_for_the_device():
    hidden, weight, ids = example(600)
    blocked = torch.arange(VOCABULARY - 300, VOCABULARY, dtype=torch.int32, device="cuda")
    own = torch.tensor([[[100, 90_000], [100_000, 100_001]]], dtype=torch.int32, device="cuda").repeat(600, 1, 1)

    def step() -> None:
        logp, lse = linear_log_softmax(hidden, weight, ids, blocked=blocked, return_lse=True, backend="triton")
        gradients(
            linear_log_softmax(hidden, weight, ids, blocked=blocked, ranges=own, return_lse=True, backend="triton")[1], hidden, weight
        )
        more, entropy = linear_logprob(hidden, weight, ids[:, 0], entropy=True, blocked=blocked, backend="triton")
        gradients(logp[:, 0] + lse + more + entropy, hidden, weight)

    step()
    with nothing_waits():
        step()


def test_confidences_in_a_cuda_graph():
    """What a rollout calls each step: rows of logits that change in place."""
    logits, ids = torch.randn(40, VOCABULARY, device="cuda").bfloat16(), torch.randint(0, VOCABULARY, (40, 1), device="cuda")
    row_log_softmax(logits, ids, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logp = row_log_softmax(logits, ids, backend="triton")
    logits.copy_(torch.randn_like(logits))
    graph.replay()
    assert torch.equal(logp, row_log_softmax(logits, ids, backend="triton"))


def test_memory_does_not_grow_with_positions_by_the_vocabulary():
    peaks = []
    for positions in (1024, 4096):
        hidden, weight, ids = example(positions)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradients(linear_log_softmax(hidden, weight, ids, backend="triton"), hidden, weight)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    # 64 features in float32 and bf16, and a few numbers, for each of 3072 positions more.
    assert peaks[1] - peaks[0] <= 3072 * 1024
