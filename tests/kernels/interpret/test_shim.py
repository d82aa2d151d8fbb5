"""The interpreter's repairs do what a GPU does, and what the library's own functions do."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError


@pytest.fixture
def shim() -> ModuleType:
    return sys.modules["interpreter_shim"]


@triton.jit
def narrow(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out_ptr + i, tl.load(x_ptr + i))


@triton.jit
def add(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    tl.store(out_ptr + i, x + x)  # not x + 1.0: Triton 3.6's interpreter has no bfloat16 constants, and would fail on that first


@triton.jit
def arrange(x_ptr, sorted_ptr, best_ptr, N: tl.constexpr, K: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, N))
    tl.store(sorted_ptr + tl.arange(0, N), tl.sort(x))
    tl.store(best_ptr + tl.arange(0, K), tl.topk(x, K))


def test_stores_round_to_nearest_even():
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32)
    x = ((bits << 16) + torch.tensor([0, 0x7FFF, 0x8000, 0x8001]).repeat(1 << 14).int()).view(torch.float32)
    out = torch.empty(1 << 16, dtype=torch.bfloat16)
    narrow[(1,)](x, out, N=1 << 16)
    want = x.bfloat16()
    assert torch.equal(out.isnan(), want.isnan())
    assert torch.equal(out.view(torch.int16)[~want.isnan()], want.view(torch.int16)[~want.isnan()])


def test_arithmetic_on_bfloat16_is_refused():
    with pytest.raises(InterpreterError, match="casts to float32 right after it loads"):
        add[(1,)](torch.ones(16).bfloat16(), torch.ones(16).bfloat16(), N=16)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_sorts_are_the_librarys(shim, monkeypatch, dtype):
    x = torch.randint(-(1 << 30), 1 << 30, (64,)).to(dtype)
    results = []
    for sort, topk in ((tl.sort, tl.topk), (shim.library_sort, shim.library_topk)):
        monkeypatch.setattr(tl, "sort", sort)
        monkeypatch.setattr(tl, "topk", topk)
        ordered, best = torch.empty_like(x), x.new_empty(8)
        arrange[(1,)](x, ordered, best, N=64, K=8)
        results.append((ordered, best))
    assert torch.equal(results[0][0], x.sort().values)
    for mine, theirs in zip(*results, strict=True):
        assert torch.equal(mine, theirs)
