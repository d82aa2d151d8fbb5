"""Attention in one part and in several compiles for every architecture without spills."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import decode_attention
from arkfast.kernels.decode_attention.op import MAX_GROUP, MAX_SIZE, MAX_SIZE_FLOAT32, SPLIT

pytestmark = pytest.mark.slow


# The decoders of the family, and the widest heads and largest group that the kernel takes; a compilation takes seconds.
CASES = [
    (14, 2, 64, torch.bfloat16),
    (14, 2, 64, torch.float16),
    (14, 2, 64, torch.float32),
    (16, 2, 128, torch.bfloat16),
    (MAX_GROUP, 1, MAX_SIZE, torch.bfloat16),
    (MAX_GROUP, 1, MAX_SIZE_FLOAT32, torch.float32),
]


@pytest.mark.parametrize(("heads", "groups", "size", "dtype"), CASES)
def test_one_part_and_several(compile_launches, heads, groups, size, dtype):
    q, cache = torch.zeros(2, heads, size, dtype=dtype), torch.zeros(2, groups, SPLIT + 8, size, dtype=dtype)
    lens = torch.ones(2, dtype=torch.int64)

    def run() -> None:
        decode_attention(q, cache, cache, lens, limit=SPLIT, backend="triton")
        decode_attention(q, cache, cache, lens, backend="triton")

    assert [kernel.kernel for kernel in compile_launches(run)] == ["decode_attention_parts"] * 2 + ["decode_attention_merge"]
