"""The audio merge on a GPU: equal to masked_scatter, the same bits again, no wait, a graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional as F

from arkfast.kernels import audio_embed_merge

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
AUDIO, VOCABULARY = 7, 5000


@contextmanager
def nothing_waits() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def example(features: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Forty prompts of 464 ids; the clips fill from none to all of 400 audio rows."""
    lens = torch.linspace(0, 400, 40, device="cuda").long()
    ids = torch.randint(8, VOCABULARY, (40, 464), device="cuda")
    ids[torch.arange(464, device="cuda")[None] < lens[:, None]] = AUDIO
    table = torch.randn(VOCABULARY, features, device="cuda").to(dtype).requires_grad_()
    audio = torch.randn(40, 400, features, device="cuda").to(dtype).requires_grad_()
    return ids, table, audio, lens


@pytest.mark.parametrize(("features", "dtype"), [(896, torch.bfloat16), (2048, torch.bfloat16), (1000, torch.float32), (7, torch.float16)])
def test_equals_masked_scatter(features, dtype):
    ids, table, audio, lens = example(features, dtype)
    out = audio_embed_merge(ids, table, audio, lens, AUDIO, validate=True, backend="triton")
    rows = audio[torch.arange(400, device="cuda")[None] < lens[:, None]]
    want = F.embedding(ids, table).masked_scatter((ids == AUDIO)[..., None], rows)
    upstream = torch.randint(-4, 5, out.shape, device="cuda").to(dtype)  # whole numbers: the table's sums are exact
    mine = torch.autograd.grad(out, (table, audio), upstream)
    exact = torch.autograd.grad(want, (table, audio), upstream)
    assert torch.equal(out, want)
    assert torch.equal(mine[0], exact[0])
    assert torch.equal(mine[1], exact[1])


def test_the_same_bits_again():
    ids, table, audio, lens = example(896, torch.bfloat16)
    upstream = torch.randn(40, 464, 896, device="cuda").bfloat16()
    runs = []
    for _ in range(2):
        out = audio_embed_merge(ids, table, audio, lens, AUDIO, backend="triton")
        runs.append((out, *torch.autograd.grad(out, (table, audio), upstream)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_nothing_waits_for_the_device():
    ids, table, audio, lens = example(896, torch.bfloat16)
    mismatch = torch.empty(40, dtype=torch.bool, device="cuda")

    def step() -> None:
        out = audio_embed_merge(ids, table, audio, lens, AUDIO, mismatch=mismatch, backend="triton")
        torch.autograd.grad(out.sum(), (table, audio))

    step()
    with nothing_waits():
        step()
    assert not mismatch.any()


def test_in_a_cuda_graph():
    ids, table, audio, lens = example(896, torch.bfloat16)
    table, audio = table.detach(), audio.detach()
    audio_embed_merge(ids, table, audio, lens, AUDIO, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = audio_embed_merge(ids, table, audio, lens, AUDIO, backend="triton")
    audio.copy_(torch.randn_like(audio))
    lens.sub_(1).clamp_min_(0)
    graph.replay()
    assert torch.equal(out, audio_embed_merge(ids, table, audio, lens, AUDIO, backend="triton"))
