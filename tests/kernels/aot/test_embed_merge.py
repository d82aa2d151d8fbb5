"""The merge's kernels compile for every architecture."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import audio_embed_merge

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("features", "dtype"), [(896, torch.bfloat16), (2048, torch.bfloat16), (896, torch.float32)])
def test_forward_and_backward(compile_launches, features, dtype):
    ids, lens = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    table = torch.zeros(9, features, dtype=dtype)
    audio = torch.zeros(2, 3, features, dtype=dtype, requires_grad=True)

    def run() -> None:
        audio_embed_merge(ids, table, audio, lens, 5, backend="triton").sum().backward()

    kernels = compile_launches(run)
    assert {kernel.kernel for kernel in kernels} == {"merge_slots", "merge_rows", "merge_audio_grad"}
