"""The loss kernels compile for every architecture without spills, at the sizes that they are meant for."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import opd_union_kl, union_kl, union_support, union_topk_kl

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("k", [8, 32, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_fused_loss(compile_launches, dtype, k):
    ids = torch.zeros(2, k, dtype=torch.int32)

    def run() -> None:
        for features, divergence in ((896, "forward_kl"), (2048, "reverse_kl")):
            hidden, weight = torch.zeros(2, features, dtype=dtype, requires_grad=True), torch.zeros(8, features, dtype=dtype)
            opd_union_kl(hidden, weight.requires_grad_(), ids, ids, torch.zeros(2, 2 * k), divergence=divergence, backend="triton")

    assert {kernel.kernel for kernel in compile_launches(run)} == {"union_kl_sparse"}


def test_fused_loss_with_every_option(compile_launches):
    hidden, weight, ids = torch.zeros(2, 1024).bfloat16(), torch.zeros(8, 1024).bfloat16(), torch.zeros(2, 32, dtype=torch.int64)

    def run() -> None:
        for support in ("teacher", "student", "intersection"):
            opd_union_kl(
                hidden,
                weight,
                ids,
                ids,
                torch.zeros(2, 64),
                support=support,
                divergence="jsd",
                teacher_score="original",
                teacher_lse=torch.zeros(2),
                backend="triton",
            )

    assert len(compile_launches(run)) == 3


@pytest.mark.parametrize("slots", [32, 64, 1000])
def test_rows(compile_launches, slots):
    ids, lse = torch.zeros(2, slots, dtype=torch.int32), torch.zeros(2)

    def run() -> None:
        for divergence in ("forward_kl", "reverse_kl", "jsd"):
            scores = torch.zeros(2, slots, requires_grad=True)
            union_kl(scores, scores, ids, divergence=divergence, backend="triton")
            union_kl(scores, scores, ids, divergence=divergence, tail=True, teacher_lse=lse, student_lse=lse, backend="triton")

    assert {kernel.kernel for kernel in compile_launches(run)} == {"union_kl_rows"}


@pytest.mark.parametrize("k", [8, 32, 64])
def test_union_and_logits(compile_launches, k):
    logits, ids = torch.zeros(2, 151_936, dtype=torch.bfloat16, requires_grad=True), torch.zeros(2, k, dtype=torch.int32)

    def run() -> None:
        union_support(ids, ids, backend="triton")
        union_topk_kl(logits, logits.detach(), k, backend="triton").backward()

    assert {"union_ids", "union_kl_rows", "scatter_rows"} <= {kernel.kernel for kernel in compile_launches(run)}
