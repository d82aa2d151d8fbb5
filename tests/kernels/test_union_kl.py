"""``union_support`` against Python sets; ``union_kl`` on scores: exact zeros, gradients, the tail slot and its limits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from arkfast.kernels import linear_log_softmax, union_kl, union_support

FLOAT32 = 1e-6  # scores of order 1 and sums over a few slots: several roundings of 6e-8
DIVERGENCES = ["forward_kl", "reverse_kl", "jsd"]
id_rows = st.integers(0, 4).flatmap(lambda n: st.lists(st.lists(st.integers(-1, 6), min_size=n, max_size=n), min_size=3, max_size=3))


@settings(max_examples=40, deadline=None)
@given(student=id_rows, teacher=id_rows)
def test_union_support_is_the_union_of_sets(student, teacher):
    ids, count = union_support(torch.tensor(student, dtype=torch.int32), torch.tensor(teacher, dtype=torch.int32), backend="torch")
    assert ids.dtype == count.dtype == torch.int32
    for mine, theirs, got, size in zip(student, teacher, ids.tolist(), count.tolist(), strict=True):
        slots = mine + theirs
        assert got == [i if i >= 0 and i not in slots[:n] else -1 for n, i in enumerate(slots)]
        assert size == len({i for i in slots if i >= 0})


def test_union_support_of_known_sets(backend):
    student = torch.tensor([[5, 3, 5], [-1, -1, -1], [163957, 0, 1]])
    teacher = torch.tensor([[3, 8, -1], [-1, 2, 2], [1, 0, 163957]], dtype=torch.int32)
    ids, count = union_support(student, teacher, backend=backend)
    assert ids.tolist() == [[5, 3, -1, -1, 8, -1], [-1, -1, -1, -1, 2, -1], [163957, 0, 1, -1, -1, -1]]
    assert count.tolist() == [3, 1, 3]


def test_union_support_of_no_rows_and_no_slots(backend):
    ids, count = union_support(torch.zeros(0, 2, dtype=torch.int32), torch.zeros(0, 3, dtype=torch.int32), backend=backend)
    assert ids.shape == (0, 5)
    assert count.shape == (0,)
    assert union_support(torch.zeros(2, 0, dtype=torch.int32), torch.zeros(2, 0, dtype=torch.int32), backend=backend).count.tolist() == [
        0,
        0,
    ]


def slots(rows: int = 6, width: int = 7) -> torch.Tensor:
    return torch.arange(width, dtype=torch.int32).expand(rows, width).contiguous()


@pytest.mark.parametrize("tau", [1.0, 0.37])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_equal_scores_give_exact_zeros(backend, divergence, tau):
    scores = torch.randn(6, 7) * 5
    student = scores.clone().requires_grad_()
    got = union_kl(scores, student, slots(), tau=tau, divergence=divergence, backend=backend)
    got.rows.sum().backward()
    assert got.valid.all()
    assert not got.rows.any()
    assert not student.grad.any()


@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_rows_and_gradient_equal_torch_in_float64(backend, divergence, tau):
    teacher, student = torch.randn(6, 7), torch.randn(6, 7, requires_grad=True)
    got = union_kl(teacher, student, slots(), tau=tau, divergence=divergence, beta=0.2, backend=backend)
    upstream = torch.rand(6)
    (got.rows * upstream).sum().backward()
    exact = student.detach().double().requires_grad_()
    log_p, log_q = (teacher.double() / tau).log_softmax(1), (exact / tau).log_softmax(1)
    log_m = torch.log(0.2 * log_p.exp() + 0.8 * log_q.exp())

    def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.kl_div(b, a, log_target=True, reduction="none").sum(1)

    want = {"forward_kl": kl(log_p, log_q), "reverse_kl": kl(log_q, log_p), "jsd": 0.2 * kl(log_p, log_m) + 0.8 * kl(log_q, log_m)}
    rows = tau**2 * want[divergence]
    (rows * upstream).sum().backward()
    torch.testing.assert_close(got.rows.double(), rows, rtol=0, atol=FLOAT32 * tau**2)
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=0, atol=FLOAT32 * tau)
    # Only differences of scores matter, so a row's gradient sums to 0.
    torch.testing.assert_close(student.grad.sum(1), torch.zeros(6), rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_far_apart_scores_stay_finite_and_right(backend, divergence):
    """p and q on different ids, up to float32's underflow: KL grows like the gap, JSD stops at its bound."""
    gap = torch.tensor([1.0, 30.0, 200.0])
    teacher = torch.stack([gap, -gap], dim=1)
    student = (-teacher).clone().requires_grad_()
    got = union_kl(teacher, student, slots(3, 2), divergence=divergence, beta=0.5, backend=backend)
    got.rows.sum().backward()
    # p = (s, 1 − s) with s = sigmoid(2·gap) and q is p turned round: KL(p‖q) = (2s − 1)·2·gap both ways.
    s = torch.sigmoid(2 * gap.double())
    entropy = -(s * s.log() + torch.special.xlogy(1 - s, 1 - s))
    want = math.log(2) - entropy if divergence == "jsd" else (2 * s - 1) * 2 * gap.double()
    torch.testing.assert_close(got.rows.double(), want, rtol=1e-6, atol=1e-7)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("beta", [0.1, 0.9])
def test_gradcheck(backend, divergence, beta):
    teacher, student = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    ids = slots(3, 5).index_fill(1, torch.tensor([2]), -1)
    torch.autograd.gradcheck(
        lambda s: union_kl(teacher, s, ids, tau=1.3, divergence=divergence, beta=beta, backend=backend).rows, (student,)
    )


def test_slots_that_do_not_count(backend):
    teacher, student, ids = torch.randn(4, 5), torch.randn(4, 5, requires_grad=True), slots(4, 5)
    ids[0, 1] = -1
    teacher[1, :2] = float("-inf")
    teacher[2, 3], teacher[2, 4] = float("nan"), float("inf")
    teacher[3, 1:] = float("-inf")
    got = union_kl(teacher, student, ids, backend=backend)
    got.rows.sum().backward()
    assert got.support.tolist() == [4, 3, 3, 1]
    assert got.valid.tolist() == [True, True, True, False]
    off = (ids < 0) | ~teacher.isfinite() | ~got.valid[:, None]
    assert not student.grad[off].any()
    assert student.grad[~off].all()
    smaller = union_kl(teacher[:1, [0, 2, 3, 4]], student[:1, [0, 2, 3, 4]], ids[:1, [0, 2, 3, 4]], backend=backend)
    torch.testing.assert_close(got.rows[:1], smaller.rows, rtol=1e-6, atol=0)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_tail_is_the_divergence_with_the_rest_merged_into_one_outcome(backend, divergence, tau):
    teacher, student = torch.randn(4, 12, dtype=torch.float64), torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    ids = torch.stack([torch.randperm(12)[:5] for _ in range(4)])
    got = union_kl(
        teacher.gather(1, ids),
        student.gather(1, ids),
        ids,
        tau=tau,
        divergence=divergence,
        beta=0.4,
        tail=True,
        teacher_lse=(teacher / tau).logsumexp(1),
        student_lse=(student / tau).logsumexp(1),
        backend=backend,
    ).rows
    (grad,) = torch.autograd.grad(got.sum(), student)

    def merged(scores: torch.Tensor) -> torch.Tensor:
        p = (scores / tau).softmax(1).gather(1, ids)
        return torch.cat([p, 1 - p.sum(1, keepdim=True)], dim=1)

    p, q = merged(teacher), merged(student)
    m = 0.4 * p + 0.6 * q
    want = {
        "forward_kl": (p * (p / q).log()).sum(1),
        "reverse_kl": (q * (q / p).log()).sum(1),
        "jsd": 0.4 * (p * (p / m).log()).sum(1) + 0.6 * (q * (q / m).log()).sum(1),
    }[divergence] * tau**2
    (want_grad,) = torch.autograd.grad(want.sum(), student)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(grad, want_grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tail", [False, True])
def test_the_whole_vocabulary_as_support_is_the_full_kl(backend, tail):
    vocabulary = 50
    teacher, hidden, weight = torch.randn(6, vocabulary), torch.randn(6, 8, requires_grad=True), torch.randn(vocabulary, 8) / 8**0.5
    full = F.kl_div((hidden @ weight.t()).log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="none").sum(1)
    (full_grad,) = torch.autograd.grad(full.sum(), hidden)
    distances = []
    for k in (5, 20, 35, 50):
        ids = teacher.topk(k).indices
        extra = {}
        if tail:
            log_q, lse = linear_log_softmax(hidden, weight, ids, return_lse=True)
            scores = log_q + lse[:, None]
            extra = {"tail": True, "teacher_lse": teacher.logsumexp(1), "student_lse": lse}
        else:
            scores = (hidden @ weight.t()).gather(1, ids)
        rows = union_kl(teacher.gather(1, ids), scores, ids, backend=backend, **extra).rows
        distances.append((rows - full).abs().max().item())
    (grad,) = torch.autograd.grad(rows.sum(), hidden)
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.1
    # With a tail both models keep 2⁻¹⁷ for ids that do not exist, which scales the rest by 1 − 2⁻¹⁷.
    tolerance = 2.0**-17 if tail else FLOAT32
    torch.testing.assert_close(rows, full, rtol=tolerance, atol=FLOAT32 * 3)
    torch.testing.assert_close(grad, full_grad, rtol=tolerance * 2, atol=2 * tolerance)


def test_tail_makes_one_id_worth_training_on(backend):
    """Renormalised to itself a single id says nothing; with the rest as its alternative it says how likely it is."""
    teacher, student, ids = torch.tensor([[2.0]]), torch.tensor([[0.0]], requires_grad=True), torch.tensor([[3]])
    alone = union_kl(teacher, student, ids, min_support=1, backend=backend)
    assert alone.rows.item() == 0
    lse = torch.tensor([3.0])
    got = union_kl(teacher, student, ids, tail=True, teacher_lse=lse, student_lse=lse, min_support=1, backend=backend)
    p, q = math.exp(-1), math.exp(-3)
    assert got.rows.item() == pytest.approx(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)), abs=FLOAT32)


def test_bfloat16_scores_are_widened(backend):
    teacher, student = torch.randn(6, 7).bfloat16(), torch.randn(6, 7).bfloat16().requires_grad_()
    got = union_kl(teacher, student, slots(), backend=backend).rows
    assert got.dtype == torch.float32
    assert torch.equal(got, union_kl(teacher.float(), student.detach().float(), slots(), backend=backend).rows)
    got.sum().backward()
    assert student.grad.dtype == torch.bfloat16
