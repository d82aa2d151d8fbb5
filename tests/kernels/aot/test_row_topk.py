"""The row kernels compile for every GPU that they are meant for, at the widths of real vocabularies."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import linear_topk_lse, topk_lse

pytestmark = pytest.mark.slow

# A selection's network of comparisons takes the compiler seconds, so every type and flag is covered, not every combination of them.
CASES = [
    (torch.bfloat16, 32, 151936, False, 0),
    (torch.bfloat16, 32, 151936, True, 0),
    (torch.bfloat16, 32, 151936, True, 2),
    (torch.float16, 1, 151936, True, 0),
    (torch.float32, 64, 151936, True, 0),
]


@pytest.mark.parametrize(("dtype", "k", "width", "everything", "ranges"), CASES)
def test_row_kernels(compile_launches, dtype, k, width, everything, ranges):
    logits = torch.empty(2, width, dtype=dtype)
    ids, blocked = torch.zeros(2, 64, dtype=torch.int32), torch.zeros(300, dtype=torch.int32)
    options = {"blocked": blocked, "gather_ids": ids, "need_lse": True} if everything else {}
    if ranges:
        options["ranges"] = torch.zeros(2, ranges, 2, dtype=torch.int32)
    found = compile_launches(lambda: topk_lse(logits, k, backend="triton", **options))
    extra = {"mark_dead", "row_gather"} if everything else set()
    assert {kernel.kernel for kernel in found} == {"row_stats", "row_select"} | extra


def test_kernels_of_a_mapped_linear_layer(compile_launches, arch):
    hidden, weight = torch.empty(2, 1024, dtype=torch.bfloat16), torch.empty(5000, 1024, dtype=torch.bfloat16)
    ids, vocab_map = torch.zeros(2, 40, dtype=torch.int32), torch.arange(5000, dtype=torch.int32)
    # A row's 1,024 columns are looked up before their values; one word is put aside so that 128 registers do, once a row.
    found = compile_launches(
        lambda: linear_topk_lse(hidden, weight, 32, vocab_map=vocab_map, gather_ids=ids, need_lse=True, backend="triton"),
        spills={"row_select": 4} if arch == 89 else None,
    )
    assert {kernel.kernel for kernel in found} == {"row_stats", "row_select", "row_gather", "rescore"}
