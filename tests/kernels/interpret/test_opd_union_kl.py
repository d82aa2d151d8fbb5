"""The fused loss kernel against its float64 reference: bounds of the loss and both gradients over sizes, dtypes, supports and layouts."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from arkfast.kernels import opd_union_kl, union_support
from arkfast.kernels.union_kl import fused

# Relative bounds of the loss and, in the norm, of float32 gradients.
LOSS, GRADIENT = 1e-5, 1e-5


class Case(NamedTuple):
    hidden: torch.Tensor
    weight: torch.Tensor
    student_ids: torch.Tensor
    teacher_ids: torch.Tensor
    teacher_scores: torch.Tensor


def make(positions: int, features: int, vocabulary: int, mine: int, theirs: int, dtype: torch.dtype = torch.float32) -> Case:
    """Scores of standard deviation 2 on both sides; half of the teacher's ids are the student's; holes and scores of −inf."""
    student_ids = torch.stack([torch.randperm(vocabulary)[:mine] for _ in range(positions)]).int()
    teacher_ids = torch.stack([torch.randperm(vocabulary)[:theirs] for _ in range(positions)]).int()
    shared = min(mine, theirs) // 2
    teacher_ids[:, theirs - shared :] = student_ids[:, :shared]
    scores = 2 * torch.randn(positions, mine + theirs)
    if mine + theirs > 6:
        student_ids[0, -1], scores[-1, 2] = -1, float("-inf")
    hidden, weight = torch.randn(positions, features), 2 * torch.randn(vocabulary, features) / features**0.5
    return Case(hidden.to(dtype), weight.to(dtype), student_ids, teacher_ids, scores)


class Result(NamedTuple):
    loss: torch.Tensor
    rows: torch.Tensor
    valid: torch.Tensor
    support: torch.Tensor
    d_hidden: torch.Tensor
    d_weight: torch.Tensor


def run(case: Case, backend: str, **settings) -> Result:
    hidden, weight = case.hidden.detach().requires_grad_(), case.weight.detach().requires_grad_()
    got = opd_union_kl(hidden, weight, *case[2:], **settings, backend=backend)
    (got.loss * 0.7).sum().backward()
    return Result(got.loss.detach(), got.rows, got.valid, got.support, hidden.grad, weight.grad)


def exact(case: Case, **settings) -> Result:
    wide = {name: x.double() for name, x in case._asdict().items() if x.is_floating_point()}
    settings = {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in settings.items()}
    return run(case._replace(**wide), "torch", **settings)


def check(got: Result, want: Result, gradient: float = GRADIENT) -> None:
    assert torch.equal(got.support, want.support)
    assert torch.equal(got.valid, want.valid)
    torch.testing.assert_close(got.loss.double(), want.loss, rtol=LOSS, atol=1e-7)
    torch.testing.assert_close(got.rows.double(), want.rows, rtol=LOSS, atol=1e-6)
    for mine, true in ((got.d_hidden, want.d_hidden), (got.d_weight, want.d_weight)):
        assert (mine.double() - true).norm() <= gradient * true.norm()
    assert torch.equal(got.d_weight.any(1), want.d_weight.any(1))


# One feature and one slot each; one block of features, several, and a last one of a single feature; lists of unlike length; 128 slots.
@pytest.mark.parametrize(("features", "mine", "theirs"), [(1, 1, 1), (40, 8, 8), (257, 7, 25), (97, 64, 64)])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_loss_and_gradients_are_within_the_bounds(divergence, features, mine, theirs):
    case = make(3, features, 150, mine, theirs)
    settings = {"divergence": divergence, "tau": 1.3, "beta": 0.6}
    check(run(case, "triton", **settings), exact(case, **settings))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs(dtype):
    case = make(3, 300, 80, 12, 12, dtype)
    # One rounding of each gradient to the inputs' dtype, within half its epsilon; float16's subnormals are coarser near 0.
    check(run(case, "triton"), exact(case), torch.finfo(dtype).eps / 2 + 1e-4 * (dtype == torch.float16))


def test_error_is_no_worse_than_of_dense_torch_in_the_same_dtype():
    case = make(4, 200, 60, 8, 8, torch.bfloat16)
    hidden, weight = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()
    logits = (hidden @ weight.t()).float()
    want, ours = exact(case), run(case, "triton")
    ids = torch.cat(case[2:4], 1)
    first = torch.tensor([[i >= 0 and i not in row[:n] for n, i in enumerate(row)] for row in ids.tolist()])
    inside = first & case.teacher_scores.isfinite()
    log_p = case.teacher_scores.masked_fill(~inside, float("-inf")).log_softmax(1)
    log_q = logits.gather(1, ids.clamp_min(0).long()).masked_fill(~inside, float("-inf")).log_softmax(1)
    (0.7 * (log_p.exp() * (log_p - log_q)).masked_fill(~inside, 0).sum(1).mean()).backward()
    for mine, plain, true in ((ours.d_hidden, hidden.grad, want.d_hidden), (ours.d_weight, weight.grad, want.d_weight)):
        assert (mine - true).norm() <= (plain - true).norm() + 1e-6 * true.norm()


@pytest.mark.parametrize("support", ["union", "teacher", "student", "intersection"])
@pytest.mark.parametrize("original", [False, True])
def test_supports_and_the_original_scores(support, original):
    case = make(4, 20, 30, 9, 6)
    case.student_ids[1, 3] = case.student_ids[1, 0]  # a repeat that both lists hold
    settings: dict = {"support": support, "min_support": 3}
    if original:
        # A NaN or infinite lse takes the student's own ids of that row away.
        settings |= {"teacher_score": "original", "teacher_lse": torch.tensor([1.0, 0.5, float("nan"), float("inf")])}
    check(run(case, "triton", **settings), exact(case, **settings))


@pytest.mark.parametrize("vocabulary", [151_936, 163_958])
def test_the_last_rows_of_a_real_vocabulary(vocabulary):
    case = make(2, 12, vocabulary, 32, 32, torch.bfloat16)
    case.student_ids[:, 0], case.teacher_ids[:, 1] = vocabulary - 1, 0
    check(run(case, "triton"), exact(case), 2**-8)


def test_inputs_that_are_not_contiguous_and_wide_ids():
    case = make(3, 24, 50, 8, 10)
    plain = run(case, "triton")
    strided = Case(
        torch.cat([case.hidden, case.hidden], 1)[:, :24],
        case.weight.t().contiguous().t(),
        torch.stack([case.student_ids] * 2, 2)[:, :, 0].long(),
        torch.cat([case.teacher_ids] * 2, 1)[:, :10].long(),
        torch.cat([case.teacher_scores] * 2, 1)[:, :18],
    )
    for a, b in zip(run(strided, "triton"), plain, strict=True):
        assert torch.equal(a, b)


def test_rows_do_not_depend_on_each_other():
    case = make(5, 150, 40, 8, 8)
    whole = run(case, "triton", reduction="none")
    alone = run(Case(case.hidden[3:4], case.weight, *(x[3:4] for x in case[2:])), "triton", reduction="none")
    assert torch.equal(alone.rows[0], whole.rows[3])
    assert torch.equal(alone.d_hidden[0], whole.d_hidden[3])


def test_a_call_without_gradients_gives_the_same_loss():
    case = make(3, 20, 40, 8, 8)
    got = opd_union_kl(*case, backend="triton")
    assert not got.loss.requires_grad
    assert torch.equal(got.rows, run(case, "triton").rows)


def test_odd_values_go_where_the_reference_lets_them():
    case = make(4, 6, 30, 5, 5)
    case.hidden[0, 0], case.hidden[1, 2], case.weight[int(case.student_ids[2, 1]), 3] = float("nan"), float("inf"), float("nan")
    case.teacher_scores[3] = float("inf")
    got, want = run(case, "triton", reduction="none"), run(case, "torch", reduction="none")
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert got.rows.isnan().tolist() == [True, True, True, False]


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_an_id_past_the_weight_makes_its_rows_loss_nan(divergence):
    """In either list; where the teacher does not see it the id takes no part, and other rows are as they were."""
    case = make(5, 70, 40, 6, 6)
    want = run(case, "triton", divergence=divergence, reduction="none")
    case.student_ids[1, 2], case.teacher_ids[3, 5], case.teacher_ids[4, 0] = 40, 1 << 30, 40
    case.teacher_scores[4, 6] = float("-inf")
    got = run(case, "triton", divergence=divergence, reduction="none")
    assert got.rows.isnan().tolist() == [False, True, False, True, False]
    assert got.d_hidden.isnan().all(1).tolist() == [False, True, False, True, False]
    assert torch.equal(got.rows[[0, 2]], want.rows[[0, 2]])
    assert torch.equal(got.d_hidden[[0, 2]], want.d_hidden[[0, 2]])
    assert run(case, "triton", divergence=divergence).loss.isnan()


@pytest.mark.parametrize("past", [40, 2**31 - 1, 2**31, 2**32 + 3])
def test_an_id_that_int32_does_not_hold_is_no_other_id(past):
    case = make(5, 70, 40, 6, 6)
    case = case._replace(student_ids=case.student_ids.long(), teacher_ids=case.teacher_ids.long())
    case.student_ids[1, 2], case.teacher_ids[3, 5], case.teacher_ids[4, 1] = past, past, -past
    assert run(case, "triton", reduction="none").rows.isnan().tolist() == [False, True, False, True, False]
    support = [union_support(case.student_ids, case.teacher_ids, backend=backend) for backend in ("triton", "torch")]
    assert torch.equal(support[0].ids, support[1].ids)
    assert support[0].ids[1, 2] == min(past, 2**31 - 1)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_parameters_get_no_gradient_that_nobody_asked_for(off, monkeypatch):
    case, asked = make(3, 20, 40, 8, 8), []
    launch = fused.launch_sparse

    def watched(*arguments, **settings):
        asked.append(settings["need_grad"])
        return launch(*arguments, **settings)

    monkeypatch.setattr(fused, "launch_sparse", watched)
    parameters = case.hidden.requires_grad_(), case.weight.requires_grad_()
    with off():
        quiet = opd_union_kl(*parameters, *case[2:], backend="triton")
    assert torch.equal(opd_union_kl(*parameters, *case[2:], backend="triton").rows, quiet.rows)
    assert asked == [False, True]
