"""The kernels on given scores: unions of lists of every length, divergences against float64 at the bounds, odd values and layouts."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import union_kl, union_support, union_topk_kl
from arkfast.kernels.common.backend import UnfitError
from arkfast.kernels.union_kl import reference

DIVERGENCES = ["forward_kl", "reverse_kl", "jsd"]
SETTINGS = {"tau": 1.5, "beta": 0.3}


def union_of(mine: list[int], theirs: list[int]) -> list[int]:
    slots = mine + theirs
    return [i if i >= 0 and i not in slots[:n] else -1 for n, i in enumerate(slots)]


@pytest.mark.parametrize(("mine", "theirs"), [(1, 1), (3, 0), (0, 5), (31, 2), (17, 33), (64, 64)])
def test_unions_of_lists_of_every_length(mine, theirs):
    # Ids from a range about as large as the lists: repeats within each and across both, and holes.
    student, teacher = torch.randint(-1, mine + 1, (3, mine)), torch.randint(-1, theirs + 1, (3, theirs), dtype=torch.int32)
    ids, count = union_support(student, teacher, backend="triton")
    want = [union_of(a, b) for a, b in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert ids.tolist() == want
    assert count.tolist() == [sum(i >= 0 for i in row) for row in want]


def test_unions_of_lists_that_are_not_contiguous():
    table = torch.randint(-1, 9, (10, 12))
    student, teacher = table[::2, 1:4], table.t()[:5, 2:9]
    ids, _ = union_support(student, teacher, backend="triton")
    assert ids.tolist() == [union_of(a, b) for a, b in zip(student.tolist(), teacher.tolist(), strict=True)]


@pytest.mark.parametrize("slots", [1, 2, 13, 64, 65, 600])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_rows_and_gradients_are_within_the_bounds(divergence, slots):
    teacher, student = torch.randn(3, slots) * 3, (torch.randn(3, slots) * 3).requires_grad_()
    ids = torch.arange(slots).expand(3, slots).clone()
    ids[0, slots // 2] = -1
    got = union_kl(teacher, student, ids, divergence=divergence, min_support=1, **SETTINGS, backend="triton")
    got.rows.sum().backward()
    exact = student.detach().double().requires_grad_()
    want = union_kl(teacher.double(), exact, ids, divergence=divergence, min_support=1, **SETTINGS, backend="torch")
    want.rows.sum().backward()
    assert torch.equal(got.support, want.support)
    assert torch.equal(got.valid, want.valid)
    torch.testing.assert_close(got.rows.double(), want.rows.detach(), rtol=1e-5, atol=1e-6)
    assert (student.grad - exact.grad).norm() <= 1e-5 * exact.grad.norm() + 1e-6


@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3])
def test_a_small_jsd_keeps_its_digits(gap):
    """The divergence goes like gap²; without log1p and expm1 it would drown in the rounding of 1 at 6e-8."""
    teacher = torch.randn(4, 9)
    student = teacher + gap * torch.randn(4, 9)
    ids = torch.arange(9).expand(4, 9)
    rows = union_kl(teacher, student, ids, divergence="jsd", beta=0.5, backend="triton").rows.double()
    want = union_kl(teacher.double(), student.double(), ids, divergence="jsd", beta=0.5, backend="torch").rows
    # Scores of order 1 carry 6e-8 each, so gap carries 1e-7 and gap² twice as much of itself.
    torch.testing.assert_close(rows, want, rtol=0, atol=3 * 1e-7 * gap)


def test_error_is_no_worse_than_of_torch_in_the_same_dtype():
    teacher, student, ids = torch.randn(4, 64) * 4, torch.randn(4, 64) * 4, torch.arange(64).expand(4, 64)
    for divergence in DIVERGENCES:
        want = union_kl(teacher.double(), student.double(), ids, divergence=divergence, backend="torch").rows
        plain = union_kl(teacher, student, ids, divergence=divergence, backend="torch").rows
        ours = union_kl(teacher, student, ids, divergence=divergence, backend="triton").rows
        assert (ours - want).norm() <= (plain - want).norm() + 1e-6 * want.norm()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_odd_scores_give_what_torch_gives(divergence):
    inf, nan = float("inf"), float("nan")
    teacher = torch.tensor([[1.0, 2.0, 0.0], [1.0, -inf, 0.5], [nan, inf, -inf], [1.0, 2.0, 3.0], [0.0, 1.0, 2.0], [200.0, -200.0, 0.0]])
    student = torch.tensor([[1.0, -inf, 0.0], [nan, nan, 0.5], [nan, inf, -inf], [-inf] * 3, [0.0, inf, 1.0], [-200.0, 200.0, 0.0]])
    ids = torch.arange(3).expand(6, 3)
    got = union_kl(teacher, student, ids, divergence=divergence, backend="triton")
    want = union_kl(teacher, student, ids, divergence=divergence, backend="torch")
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_tail_slot(divergence):
    teacher, student = torch.randn(3, 11), torch.randn(3, 11)
    ids = torch.arange(7).expand(3, 7).clone()
    ids[1, 3] = -1
    results = []
    for backend, dtype in (("triton", torch.float32), ("torch", torch.float64)):
        z, lse = student[:, :7].to(dtype).requires_grad_(), (student.to(dtype) / 1.5).logsumexp(1).requires_grad_()
        teacher_lse = (teacher.to(dtype) / 1.5).logsumexp(1)
        settings = {"tail": True, "teacher_lse": teacher_lse, "student_lse": lse, "divergence": divergence, **SETTINGS}
        rows = union_kl(teacher[:, :7].to(dtype), z, ids, **settings, backend=backend).rows
        rows.sum().backward()
        results.append((rows.detach().double(), z.grad.double(), lse.grad.double()))
    for mine, true in zip(*results, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-5, atol=3e-6)


def test_scores_that_are_not_contiguous():
    teacher, student, ids = torch.randn(9, 4).t(), torch.randn(4, 20)[:, 2:11], torch.arange(18).expand(4, 18)[:, ::2]
    got = union_kl(teacher, student, ids, backend="triton").rows
    assert torch.equal(got, union_kl(teacher.contiguous(), student.contiguous(), ids.contiguous(), backend="triton").rows)


def test_what_does_not_fit_is_named():
    wide = torch.zeros(1, 65, dtype=torch.int32)
    with pytest.raises(UnfitError, match="union_support: the Triton kernel does not take more than 128 slots a position"):
        union_support(wide, wide, backend="triton")
    scores = torch.zeros(1, 1025)
    with pytest.raises(UnfitError, match="union_kl: the Triton kernel does not take more than 1024 slots a position"):
        union_kl(scores, scores, scores.int(), backend="triton")


@pytest.mark.parametrize("vocabulary", [151_936, 163_958])
def test_logits_over_a_real_vocabulary(vocabulary):
    student, teacher = torch.randn(2, vocabulary).bfloat16().requires_grad_(), torch.randn(2, vocabulary).bfloat16()
    teacher.data[:, -1], teacher.data[:, 0] = 30.0, 29.0  # the last and the first id are on the union
    got = union_topk_kl(student, teacher, 32, backend="triton")
    got.backward()
    exact = student.detach().double().requires_grad_()
    want = union_topk_kl(exact, teacher.double(), 32, backend="torch")
    want.backward()
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)
    assert student.grad[:, [0, -1]].all()
    assert torch.equal(student.grad != 0, exact.grad.bfloat16() != 0)
    assert (student.grad - exact.grad).norm() <= 2**-9 * exact.grad.norm()


def test_the_kernel_and_the_reference_find_one_union():
    ids = torch.randint(-1, 20, (5, 30), dtype=torch.int32)
    mine, theirs = ids.split([11, 19], dim=1)
    for got, want in zip(union_support(mine, theirs, backend="triton"), reference.unique_ids(ids), strict=True):
        assert torch.equal(got, want)
