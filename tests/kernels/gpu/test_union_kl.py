"""The loss block on a GPU: bounds at real sizes, the same bits twice, no wait for the device, no fallback, memory, capture in a graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch

from arkfast.kernels import gather_linear, linear_topk_lse, opd_union_kl, sparse_weight_grad, union_kl, union_support, union_topk_kl
from arkfast.kernels.common.backend import fallbacks

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is seen")]
VOCABULARY = 151_936
Arguments = tuple[torch.Tensor, ...]


@pytest.fixture(autouse=True)
def no_fallback():
    """A warning that an op runs in torch fails the test, and so does one that was given before."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield
    assert not {op: reasons for op, reasons in fallbacks().items() if op in ("opd_union_kl", "gather_linear", "sparse_weight_grad")}


def block(positions: int = 512, features: int = 896, k: int = 32, dtype: torch.dtype = torch.bfloat16) -> Arguments:
    """Inputs of the loss; every position has one id in common, so that one row of the weight's gradient is a long run."""
    generator = torch.Generator("cuda").manual_seed(1)
    hidden = torch.randn(positions, features, generator=generator, device="cuda").to(dtype)
    weight = (torch.randn(VOCABULARY, features, generator=generator, device="cuda") / features**0.5).to(dtype)
    ids = torch.randint(0, VOCABULARY, (positions, 2 * k), generator=generator, device="cuda", dtype=torch.int32)
    ids[:, 0], ids[:, k : k + k // 2] = VOCABULARY - 1, ids[:, : k // 2]
    scores = 2 * torch.randn(positions, 2 * k, generator=generator, device="cuda")
    return hidden.requires_grad_(), weight.requires_grad_(), ids[:, :k], ids[:, k:], scores


def step(arguments: Arguments, **settings) -> tuple[torch.Tensor, ...]:
    loss = opd_union_kl(*arguments, **settings).loss
    return loss.detach(), *torch.autograd.grad(loss, arguments[:2])


@pytest.mark.parametrize(("features", "k", "dtype"), [(896, 32, torch.bfloat16), (2048, 64, torch.bfloat16), (1024, 8, torch.float32)])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_fused_loss_equals_float64(features, k, dtype, divergence):
    arguments = block(96, features, k, dtype)
    got = step(arguments, divergence=divergence, tau=1.5)
    # In float64 the op runs in torch, which is what the reference is; on the CPU, where that is no fallback.
    exact = tuple((x.detach().double() if x.is_floating_point() else x).cpu() for x in arguments)
    exact = exact[0].requires_grad_(), exact[1].requires_grad_(), *exact[2:]
    want = step(exact, divergence=divergence, tau=1.5)
    torch.testing.assert_close(got[0].double().cpu(), want[0], rtol=1e-5, atol=0)
    bound = 1e-5 if dtype == torch.float32 else 2**-8
    for mine, true in zip(got[1:], (x.cuda() for x in want[1:]), strict=True):
        assert (mine.double() - true).norm() <= bound * true.norm()
        assert not mine.isnan().any()


def test_the_same_bits_twice_and_for_any_number_of_rows():
    arguments = block()
    first, second = step(arguments), step(arguments)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    rows = opd_union_kl(*arguments).rows
    few = opd_union_kl(arguments[0][100:107], arguments[1], *(x[100:107] for x in arguments[2:])).rows
    assert torch.equal(few, rows[100:107])


def test_nothing_waits_for_the_device():
    arguments = block()
    step(arguments)  # compiles
    ids = torch.cat(arguments[2:4], 1)
    weights = torch.rand(len(ids), device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(arguments, row_weight=weights)
        gather_linear(*arguments[:2], ids).sum().backward()
        scores = arguments[4].clone().requires_grad_()
        union = union_support(*arguments[2:4])
        union_kl(arguments[4], scores, union.ids).rows.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_whole_block_waits_for_nothing(no_sync):
    """Teacher and student as a training step has them: another vocabulary, whose ids a map takes to the student's, blocked ids, weights of
    rows, micro-batches that add to one gradient."""
    hidden, weight, student_ids, *_ = block(96)
    head = (torch.randn(VOCABULARY + 12_022, 1024, device="cuda") / 32).bfloat16()
    teacher = torch.randn(96, 1024, device="cuda").bfloat16()
    vocab_map = torch.arange(len(head), device="cuda", dtype=torch.int32)
    vocab_map[VOCABULARY:] = -1
    blocked = torch.arange(151_643, VOCABULARY, device="cuda", dtype=torch.int32)
    student_ids, row_weight = student_ids.clamp_max(151_642), torch.ones(96, device="cuda")

    def whole() -> torch.Tensor:
        weight.grad = hidden.grad = None
        losses = []
        for rows in (slice(0, 64), slice(64, 96)):
            with torch.no_grad():
                top = linear_topk_lse(teacher[rows], head, 32, vocab_map=vocab_map, blocked=blocked, gather_ids=student_ids[rows])
                scores = torch.cat([top.gathered, top.values], dim=1)
            out = opd_union_kl(
                hidden[rows], weight, student_ids[rows], top.ids, scores, row_weight=row_weight[rows], reduction="sum"
            )  # fmt: skip
            out.loss.backward()
            losses.append(out.loss.detach())
        return torch.stack(losses)

    first = whole()  # compiles
    with no_sync():
        second = whole()
    assert torch.equal(first, second)
    assert second.isfinite().all()
    assert hidden.grad.isfinite().all()
    assert weight.grad.isfinite().all()


def test_an_id_past_the_weight_shows_in_the_loss():
    hidden, weight, student_ids, teacher_ids, scores = block(16)
    student_ids = student_ids.clone()
    student_ids[3, 5] = VOCABULARY
    loss, d_hidden, _ = step((hidden, weight, student_ids, teacher_ids, scores), reduction="sum")
    assert loss.isnan()
    assert d_hidden.isnan().any(1).nonzero().flatten().tolist() == [3]


def test_memory_does_not_grow_with_positions_times_vocabulary():
    def extra_bytes(positions: int) -> int:
        arguments = block(positions)
        arguments[1].requires_grad_(False)  # the dense gradient of the head is the caller's, whatever makes it
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        opd_union_kl(*arguments).loss.backward()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    few, many = extra_bytes(512), extra_bytes(2048)
    # The hidden gradient is there in float32 and in its own dtype; all else is a few numbers a slot.
    assert (many - few) / (2048 - 512) <= 896 * 6 + 64 * 8 + 64


def captured(call: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    graph.replay()
    torch.cuda.synchronize()
    return out


def test_capture_in_a_cuda_graph():
    arguments = block(64)
    with torch.no_grad():
        ids = torch.cat(arguments[2:4], 1)

        def call() -> tuple[torch.Tensor, ...]:
            scores = gather_linear(*arguments[:2], ids)
            grad = sparse_weight_grad(scores, ids, arguments[0], VOCABULARY, dtype=torch.bfloat16)
            return scores, grad, opd_union_kl(*arguments).rows

        eager = call()
        assert all(torch.equal(a, b) for a, b in zip(captured(call), eager, strict=True))


def test_sorted_sums_equal_atomic_ones():
    arguments = block()
    ids = torch.cat(arguments[2:4], 1)
    grad = torch.randn(ids.shape, device="cuda")
    with torch.no_grad():
        ordered, atomic = (sparse_weight_grad(grad, ids, arguments[0], VOCABULARY, mode=mode) for mode in ("sorted", "atomic"))
    assert (ordered - atomic).norm() <= 1e-5 * ordered.norm()
    assert torch.equal(ordered.any(1), atomic.any(1))


def test_the_operator_on_logits():
    student, teacher = (torch.randn(9, VOCABULARY, device="cuda").bfloat16() for _ in range(2))
    student.requires_grad_()
    loss = union_topk_kl(student, teacher, 32)
    loss.backward()
    exact = student.detach().double().cpu().requires_grad_()
    want = union_topk_kl(exact, teacher.double().cpu(), 32)
    want.backward()
    torch.testing.assert_close(loss.double().cpu(), want, rtol=1e-5, atol=0)
    assert (student.grad.double().cpu() - exact.grad).norm() <= 2**-8 * exact.grad.norm()
