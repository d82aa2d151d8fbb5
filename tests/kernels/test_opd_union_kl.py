"""The training loss against the definition in float64 loops, and the properties that the definition implies."""

from __future__ import annotations

import itertools

import pytest
import torch

from arkfast.kernels import opd_union_kl

# Scores, log-probabilities and the sums over at most 10 slots are of order 1, where float32 resolves 6e-8; a few roundings a slot stay
# under 1e-6.
FLOAT32 = 1e-6


def as_double(case):
    hidden, weight, scores = (x.detach().double() for x in (case.hidden, case.weight, case.teacher_scores))
    return hidden.requires_grad_(), weight.requires_grad_(), *case[2:4], scores


@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("support", ["union", "teacher", "student", "intersection"])
def test_loss_and_gradients_equal_the_definition(oracle, loss_case, backend, tau, divergence, support):
    case = loss_case()
    settings = {"tau": tau, "divergence": divergence, "beta": 0.3, "support": support}
    hidden, weight = case.hidden.requires_grad_(), case.weight.requires_grad_()
    got = opd_union_kl(hidden, weight, *case[2:], **settings, backend=backend)
    got.loss.backward()
    exact = as_double(case)
    want = oracle(*exact, **settings)
    want.mean.backward()
    assert got.loss.dtype == torch.float32
    torch.testing.assert_close(got.loss.double(), want.mean, rtol=0, atol=FLOAT32)
    torch.testing.assert_close(got.rows.double(), want.rows.detach(), rtol=0, atol=FLOAT32 * tau**2)
    torch.testing.assert_close(hidden.grad.double(), exact[0].grad, rtol=0, atol=FLOAT32)
    torch.testing.assert_close(weight.grad.double(), exact[1].grad, rtol=0, atol=FLOAT32)
    assert got.valid.tolist() == want.valid
    assert got.support.tolist() == want.support
    assert not got.rows.requires_grad


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_gradcheck(loss_case, backend, divergence):
    hidden, weight, *rest = as_double(loss_case())
    settings = {"tau": 1.5, "divergence": divergence, "beta": 0.7, "backend": backend}
    torch.autograd.gradcheck(lambda h, w: opd_union_kl(h, w, *rest, **settings).loss, (hidden, weight))


def test_float64_is_computed_in_float64(oracle, loss_case, backend):
    exact = as_double(loss_case())
    torch.testing.assert_close(opd_union_kl(*exact, backend=backend).loss, oracle(*exact).mean, rtol=0, atol=1e-14)


def test_bfloat16_inputs_are_scored_in_float32(oracle, loss_case, backend):
    case = loss_case(torch.bfloat16)
    hidden, weight = case.hidden.requires_grad_(), case.weight.requires_grad_()
    got = opd_union_kl(hidden, weight, *case[2:], backend=backend)
    got.loss.backward()
    exact = as_double(case)
    want = oracle(*exact)
    want.mean.backward()
    torch.testing.assert_close(got.loss.double(), want.mean, rtol=0, atol=FLOAT32)
    for mine, true in ((hidden.grad, exact[0].grad), (weight.grad, exact[1].grad)):
        assert mine.dtype == torch.bfloat16
        # One rounding to 8 significant bits: each element is within 2⁻⁹ of itself.
        assert (mine.double() - true).norm() <= 2**-9 * true.norm()


def test_autocast_does_not_narrow_the_loss(loss_case, backend):
    case = loss_case()
    hidden, weight = case.hidden.requires_grad_(), case.weight.requires_grad_()
    outside = opd_union_kl(hidden, weight, *case[2:], backend=backend).loss
    grads = torch.autograd.grad(outside, (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        inside = opd_union_kl(hidden, weight, *case[2:], backend=backend).loss
        inside_grads = torch.autograd.grad(inside, (hidden, weight))
    assert torch.equal(inside, outside)
    assert all(torch.equal(a, b) for a, b in zip(grads, inside_grads, strict=True))


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_a_constant_added_to_the_teacher_changes_nothing(loss_case, backend, divergence):
    case = loss_case()
    # Quarters plus whole shifts are exact in float32, so that only the loss itself can round differently.
    scores = (case.teacher_scores * 4).round() / 4
    shift = torch.arange(len(scores))[:, None] * 8.0 - 20
    plain = opd_union_kl(*case[:4], scores, divergence=divergence, backend=backend)
    shifted = opd_union_kl(*case[:4], scores + shift, divergence=divergence, backend=backend)
    assert plain.loss > 0.1
    torch.testing.assert_close(shifted.rows, plain.rows, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("tau", [1.0, 0.7])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_a_student_that_equals_its_teacher_has_no_loss_and_no_gradient(loss_case, backend, divergence, tau):
    case = loss_case()
    hidden, weight = case.hidden.requires_grad_(), case.weight.requires_grad_()
    ids = torch.cat([case.student_ids, case.teacher_ids], dim=1)
    scores = (weight[ids.clamp_min(0)] * hidden[:, None]).sum(-1).detach()
    got = opd_union_kl(hidden, weight, case.student_ids, case.teacher_ids, scores, tau=tau, divergence=divergence, backend=backend)
    got.loss.backward()
    assert got.valid.sum() == 7
    # The two sides sum their products in orders of their own; on equal scores the zero is exact (test_union_kl).
    assert got.loss.abs() <= FLOAT32
    assert hidden.grad.abs().max() <= FLOAT32
    assert weight.grad.abs().max() <= FLOAT32


def test_no_gradient_reaches_rows_outside_the_support(loss_case, backend):
    case = loss_case()
    weight = case.weight.requires_grad_()
    got = opd_union_kl(case.hidden, weight, *case[2:], backend=backend)
    got.loss.backward()
    seen = torch.cat([case.student_ids, case.teacher_ids], 1).masked_fill(~case.teacher_scores.isfinite() | ~got.valid[:, None], -1)
    on = torch.zeros(len(weight), dtype=torch.bool)
    on[seen[seen >= 0].long()] = True
    assert not on.all()
    assert not weight.grad[~on].any()
    assert weight.grad[on].abs().sum(1).gt(0).all()


def test_rows_that_do_not_count_stop_everything_even_nan(loss_case, backend):
    case = loss_case()
    want = opd_union_kl(*case, backend=backend)
    dead = ~want.valid
    assert dead.nonzero().flatten().tolist() == [3, 4, 6, 7]
    hidden = case.hidden.masked_fill(dead[:, None], float("nan")).requires_grad_()
    weight = case.weight.requires_grad_()
    row_weight = torch.ones(len(hidden)).masked_fill(dead, float("nan"))
    got = opd_union_kl(hidden, weight, *case[2:], row_weight=row_weight, backend=backend)
    got.loss.backward()
    assert torch.equal(got.loss, want.loss)
    assert not hidden.grad[dead].any()
    assert hidden.grad.isfinite().all()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_rows_of_weight_0_stop_everything_even_nan(loss_case, backend, divergence):
    """By ``row_weight``, and by a caller that leaves rows out of its own reduction."""
    case = loss_case()
    row_weight = torch.tensor([1.0, 0, 2, 1, 1, 0, 1, 1, 0.5])
    left_out = row_weight == 0
    settings = {"reduction": "none", "divergence": divergence, "backend": backend}
    grads = []
    for poison in (False, True):
        hidden = case.hidden.masked_fill(left_out[:, None] & poison, float("nan")).requires_grad_()
        weight = case.weight.clone().requires_grad_()
        weighted = opd_union_kl(hidden, weight, *case[2:], row_weight=row_weight, **settings).loss
        assert not weighted[left_out].any()
        plain = opd_union_kl(hidden, weight, *case[2:], **settings).loss.masked_fill(left_out, 0.0)
        grads.append([*torch.autograd.grad(weighted.sum(), (hidden, weight)), *torch.autograd.grad(plain.sum(), (hidden, weight))])
    assert not grads[0][0][left_out].any()
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_nan_in_a_row_that_counts_shows_in_the_loss(loss_case, backend):
    case = loss_case()
    case.hidden[0, 0] = float("nan")
    assert opd_union_kl(*case, backend=backend).loss.isnan()


@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=2)))
def test_each_subset_of_requires_grad(loss_case, backend, wanted):
    case = loss_case()
    full = [case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()]
    opd_union_kl(*full, *case[2:], backend=backend).loss.backward()
    some = [x.clone().requires_grad_(w) for x, w in zip(case[:2], wanted, strict=True)]
    loss = opd_union_kl(*some, *case[2:], backend=backend).loss
    assert loss.requires_grad == any(wanted)
    if any(wanted):
        loss.backward()
    for x, reference, w in zip(some, full, wanted, strict=True):
        assert (x.grad is not None) == w
        assert not w or torch.equal(x.grad, reference.grad)


def test_teacher_scores_get_no_gradient(loss_case, backend):
    case = loss_case()
    scores = case.teacher_scores.requires_grad_()
    loss = opd_union_kl(case.hidden.requires_grad_(), case.weight, *case[2:4], scores, backend=backend).loss
    assert torch.autograd.grad(loss, scores, allow_unused=True) == (None,)


def test_reductions_and_row_weights(loss_case, backend):
    case = loss_case()
    row_weight = torch.rand(len(case.hidden))
    mean, total, rows = (opd_union_kl(*case, row_weight=row_weight, reduction=r, backend=backend) for r in ("mean", "sum", "none"))
    count = int(mean.valid.sum())
    assert count == 5
    torch.testing.assert_close(rows.loss, mean.rows * row_weight, rtol=1e-6, atol=0)
    torch.testing.assert_close(total.loss, rows.loss.sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(mean.loss, total.loss / count, rtol=1e-6, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_four_micro_batches_sum_to_one_batch(loss_case, backend, reduction):
    case = loss_case()
    whole = opd_union_kl(*case, reduction="sum", backend=backend)
    parts = [
        opd_union_kl(case.hidden[s], case.weight, *(x[s] for x in case[2:]), reduction="sum", backend=backend)
        for s in (slice(0, 2), slice(2, 3), slice(3, 5), slice(5, 9))
    ]
    total = sum(part.loss for part in parts)
    count = sum(part.valid.sum() for part in parts)
    assert torch.equal(torch.cat([part.rows for part in parts]), whole.rows)
    want = whole.loss if reduction == "sum" else opd_union_kl(*case, backend=backend).loss
    torch.testing.assert_close(total if reduction == "sum" else total / count, want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_an_empty_batch_has_a_live_graph(backend, reduction):
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    ids = torch.zeros(0, 3, dtype=torch.int32)
    got = opd_union_kl(hidden, weight, ids, ids, torch.zeros(0, 6), reduction=reduction, backend=backend)
    got.loss.sum().backward()
    assert got.loss.sum() == 0
    assert hidden.grad.shape == (0, 4)
    assert not weight.grad.any()


def test_a_batch_without_a_row_that_counts_gives_zero(backend):
    hidden, weight = torch.randn(2, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    none = torch.full((2, 3), -1, dtype=torch.int32)
    got = opd_union_kl(hidden, weight, none, none, torch.zeros(2, 6), backend=backend)
    got.loss.backward()
    assert got.loss == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


@pytest.mark.parametrize(("support", "size"), [("union", 5), ("student", 3), ("teacher", 4), ("intersection", 2)])
def test_support_of_known_sets(backend, support, size):
    student_ids, teacher_ids = torch.tensor([[4, 7, 2]]), torch.tensor([[7, 9, 2, 5]])
    got = opd_union_kl(torch.randn(1, 3), torch.randn(10, 3), student_ids, teacher_ids, torch.randn(1, 7), support=support, backend=backend)
    assert got.support.tolist() == [size]


def test_min_support_counts_ids_not_slots(backend):
    # Two slots, one id: renormalised to itself it teaches nothing.
    ids = torch.tensor([[3]])
    arguments = torch.randn(1, 3), torch.randn(10, 3), ids, ids, torch.randn(1, 2)
    assert opd_union_kl(*arguments, backend=backend).valid.tolist() == [False]
    alone = opd_union_kl(*arguments, min_support=1, backend=backend)
    assert alone.valid.tolist() == [True]
    assert alone.loss == 0


def test_original_scores_lower_the_students_own_ids_by_the_lse(oracle, loss_case, backend):
    case = loss_case()
    lse = torch.linspace(0.5, 3, len(case.hidden))
    mixed = case.teacher_scores.clone()
    for t, (mine, theirs) in enumerate(zip(case.student_ids.tolist(), case.teacher_ids.tolist(), strict=True)):
        for slot, token in enumerate(mine):
            if token not in theirs:
                mixed[t, slot] -= lse[t]
    got = opd_union_kl(*case, teacher_score="original", teacher_lse=lse, backend=backend)
    want = oracle(case.hidden.double(), case.weight.double(), *case[2:4], mixed.double())
    torch.testing.assert_close(got.rows.double(), want.rows, rtol=0, atol=FLOAT32)
    assert (got.rows - opd_union_kl(*case, backend=backend).rows).abs().max() > 0.1
