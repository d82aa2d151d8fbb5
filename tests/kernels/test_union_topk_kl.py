"""The drop-in loss on two logit tensors: equal to the training loss, to the full KL at its limit, and quiet off the union."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from arkfast.kernels import opd_union_kl, topk_lse, union_topk_kl


def logits(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(*shape, dtype=dtype).requires_grad_(), torch.randn(*shape, dtype=dtype)


@pytest.mark.parametrize("k", [30, 100])
def test_k_of_the_vocabulary_and_more_is_the_full_kl(backend, k):
    student, teacher = logits(4, 30)
    got = union_topk_kl(student, teacher, k, backend=backend)
    want = F.kl_div(student.double().log_softmax(-1), teacher.double().log_softmax(-1), log_target=True, reduction="batchmean")
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-6)


def test_equals_the_training_loss_and_its_gradient(backend):
    hidden, weight, teacher = torch.randn(6, 8), (torch.randn(40, 8) / 8**0.5).requires_grad_(), torch.randn(6, 40)
    blocked = torch.tensor([0, 7, 39], dtype=torch.int32)
    student = hidden @ weight.t()
    got = union_topk_kl(student, teacher, 5, tau=2.0, blocked=blocked, backend=backend)
    (grad,) = torch.autograd.grad(got, weight)
    student_ids = topk_lse(student, 5, blocked=blocked, backend=backend).ids
    top = topk_lse(teacher, 5, blocked=blocked, gather_ids=student_ids, backend=backend)
    scores = torch.cat([top.gathered, top.values], dim=1)
    want = opd_union_kl(hidden, weight, student_ids, top.ids, scores, tau=2.0, backend=backend)
    (want_grad,) = torch.autograd.grad(want.loss, weight)
    torch.testing.assert_close(got, want.loss, rtol=0, atol=1e-6)
    torch.testing.assert_close(grad, want_grad, rtol=0, atol=1e-6)


def test_no_gradient_off_the_union_or_to_the_teacher(backend):
    student, teacher = logits(3, 20)
    teacher.requires_grad_()
    union_topk_kl(student, teacher, 4, backend=backend).backward()
    on = torch.zeros(3, 20, dtype=torch.bool)
    for x in (student, teacher):
        on.scatter_(1, x.detach().topk(4).indices, True)
    assert teacher.grad is None
    assert not student.grad[~on].any()
    assert student.grad[on].all()


def test_leading_axes_and_reductions(backend):
    student, teacher = logits(2, 3, 20)
    rows = union_topk_kl(student, teacher, 4, reduction="none", backend=backend)
    assert rows.shape == (2, 3)
    torch.testing.assert_close(union_topk_kl(student, teacher, 4, reduction="sum", backend=backend), rows.sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(union_topk_kl(student, teacher, 4, backend=backend), rows.mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(union_topk_kl(student[0, 1], teacher[0, 1], 4, backend=backend), rows[0, 1], rtol=1e-6, atol=0)


def test_masked_rows_are_not_in_the_mean(backend):
    student, teacher = logits(4, 20)
    teacher[1] = float("-inf")
    teacher[2, 1:] = float("-inf")
    got = union_topk_kl(student, teacher, 4, backend=backend)
    got.backward()
    assert torch.equal(got, union_topk_kl(student[[0, 3]], teacher[[0, 3]], 4, backend=backend))
    assert not student.grad[1:3].any()


def test_self_distillation_is_exactly_zero(backend):
    student, _ = logits(4, 20)
    loss = union_topk_kl(student, student.detach(), 4, backend=backend)
    loss.backward()
    assert loss == 0
    assert not student.grad.any()


def test_a_constant_added_to_the_teacher_changes_nothing(backend):
    student, teacher = logits(4, 20)
    teacher = (teacher * 8).round() / 8  # exact under the shift, so that the same ids are chosen
    shifted = teacher + torch.tensor([[3.0], [-50.0], [0.5], [100.0]])
    plain = union_topk_kl(student, teacher, 4, reduction="none", backend=backend)
    torch.testing.assert_close(union_topk_kl(student, shifted, 4, reduction="none", backend=backend), plain, rtol=0, atol=1e-6)


def test_gradcheck(backend):
    student, teacher = logits(3, 9, dtype=torch.float64)
    torch.autograd.gradcheck(lambda s: union_topk_kl(s, teacher, 3, tau=1.5, backend=backend), (student,))


def test_bfloat16_and_empty(backend):
    student, teacher = torch.randn(3, 20).bfloat16().requires_grad_(), torch.randn(3, 20).bfloat16()
    loss = union_topk_kl(student, teacher, 4, backend=backend)
    loss.backward()
    assert loss.dtype == torch.float32
    assert student.grad.dtype == torch.bfloat16
    wide = union_topk_kl(student.detach().float(), teacher.float(), 4, backend=backend)
    assert torch.equal(loss, wide)
    empty = torch.zeros(0, 20, requires_grad=True)
    loss = union_topk_kl(empty, torch.zeros(0, 20), 4, backend=backend)
    loss.backward()
    assert loss == 0
    assert empty.grad.shape == (0, 20)


def loss_and_gradient(f, student: torch.Tensor, *rest) -> tuple[torch.Tensor, torch.Tensor]:
    student = student.detach().requires_grad_()
    loss = f(student, *rest)
    return loss.detach(), torch.autograd.grad(loss, student)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_operator_keeps_its_promises_to_torch(dtype):
    """Schema, fake shapes, autograd registration and tracing, also with a symbolic number of positions."""
    student, teacher = logits(5, 20, dtype=dtype)
    blocked = torch.tensor([3, 7], dtype=torch.int32)
    ranges = torch.tensor([[[0, 9], [12, 20]]], dtype=torch.int32).repeat(5, 1, 1)
    for mask, own in ((blocked, None), (None, None), (blocked, ranges)):
        torch.library.opcheck(torch.ops.arkfast.union_topk_kl.default, (student, teacher, 4, 2.0, mask, own, "auto"))
    ids = torch.tensor([[0, 3, -1], [-1, -1, -1]], dtype=torch.int32)
    arguments = torch.randn(2, 3), torch.randn(2), ids, 7, dtype, "auto"
    torch.library.opcheck(torch.ops.arkfast.union_topk_kl_backward.default, arguments)


def compiled_equals_eager(compiler: str) -> None:
    def loss(student: torch.Tensor, teacher: torch.Tensor, blocked: torch.Tensor, ranges: torch.Tensor) -> torch.Tensor:
        # With ordinary operations on both sides, so that the operator stands within a larger graph.
        return 2 * union_topk_kl(student * 0.5, teacher, 4, tau=1.5, blocked=blocked, ranges=ranges)

    compiled = torch.compile(loss, fullgraph=True, backend=compiler, dynamic=True)
    blocked = torch.tensor([0, 19], dtype=torch.int32)
    for rows in (3, 8):
        student, teacher = logits(2, rows, 20)
        rest = teacher, blocked, torch.tensor([[2, 15], [16, 20]], dtype=torch.int32).expand(2, rows, 2, 2)
        got, want = loss_and_gradient(compiled, student, *rest), loss_and_gradient(loss, student, *rest)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
        assert want[1].any()


def test_a_whole_graph_is_traced():
    compiled_equals_eager("aot_eager")


@pytest.mark.slow
def test_a_whole_graph_is_compiled():
    compiled_equals_eager("inductor")


def test_a_second_gradient_is_refused():
    student, teacher = logits(3, 20)
    with pytest.raises(RuntimeError, match="union_topk_kl: gradients of gradients are not available"):
        torch.autograd.grad(union_topk_kl(student, teacher, 4).square(), student, create_graph=True)


def test_rows_that_a_caller_leaves_out_stop_even_nan(backend):
    student, teacher = logits(4, 20)
    broken = student.detach().clone()
    broken[2] = float("nan")
    kept = torch.tensor([True, True, False, True])
    grads = []
    for values in (student.detach(), broken):
        x = values.clone().requires_grad_()
        rows = union_topk_kl(x, teacher, 4, reduction="none", backend=backend).masked_fill(~kept, 0.0)
        grads.append(torch.autograd.grad(rows.sum(), x)[0])
    assert torch.equal(*grads)
