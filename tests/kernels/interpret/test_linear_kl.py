"""The divergence's row kernel at shapes and values that hurt, in Triton's interpreter; the op's contract is tested in the folder above."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import linear_kl
from arkfast.kernels.linear_kl.op import DIVERGENCES, Settings, row_pass

INF, NAN = float("inf"), float("nan")
BETA = 0.3


def settings(divergence: str, tau: float = 1.0) -> Settings:
    return Settings(tau=tau, divergence=divergence, beta=BETA, reduction="none", rows=1, chosen="triton")


def oracle(student: torch.Tensor, teacher: torch.Tensor, divergence: str, tau: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, gradient to the student's logits) in float64 by autograd."""
    student = student.detach().double().requires_grad_()
    log_q, log_p = (student / tau).log_softmax(1), (teacher.double() / tau).log_softmax(1)
    p, q = log_p.exp(), log_q.exp()
    log_m = torch.logaddexp(log_p + torch.tensor(BETA).double().log(), log_q + torch.tensor(1 - BETA).double().log())
    rows = (
        tau**2
        * {
            "forward_kl": lambda: (p * (log_p - log_q)).sum(1),
            "reverse_kl": lambda: (q * (log_q - log_p)).sum(1),
            "jsd": lambda: (BETA * p * (log_p - log_m) + (1 - BETA) * q * (log_q - log_m)).sum(1),
        }[divergence]()
    )
    (grad,) = torch.autograd.grad(rows.sum(), student)
    return rows.detach(), grad


def run(student, teacher, divergence, *, tau=1.0, dead=None, factor=None, out_dtype=torch.float32, grad=True):
    """(rows, gradient) of the kernel; memory that it should write holds NaN before."""
    rows = torch.empty(len(student))
    factor = torch.ones(len(student)) if factor is None else factor
    out = torch.empty(student.shape, dtype=out_dtype) if grad else None
    return rows, row_pass(student, teacher, dead, factor if grad else None, rows, out, settings(divergence, tau))


@pytest.mark.parametrize("divergence", DIVERGENCES)
# One column, a block less, equal to and more by one than a power of two, two blocks and a prime tail.
@pytest.mark.parametrize("width", [1, 1023, 1024, 1025, 2053])
def test_rows_and_gradient(divergence, width):
    student, teacher = 3 * torch.randn(3, width + 3)[:, 1 : width + 1], 3 * torch.randn(3, width)
    rows, grad = run(student, teacher, divergence, tau=2.0)
    want, want_grad = oracle(student, teacher, divergence, 2.0)
    torch.testing.assert_close(rows.double(), want, rtol=1e-5, atol=1e-7)
    assert (grad.double() - want_grad).norm() <= 1e-5 * want_grad.norm() + 1e-12
    alone, nothing = run(student, teacher, divergence, tau=2.0, grad=False)
    assert nothing is None
    assert torch.equal(alone, rows)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_blocked_columns_equal_a_narrower_vocabulary(divergence):
    student, teacher, dead = torch.randn(2, 1100), torch.randn(2, 1100), torch.zeros(1100, dtype=torch.bool)
    dead[[0, 500, 1099]] = True
    rows, grad = run(student, teacher, divergence, dead=dead)
    want, want_grad = oracle(student[:, ~dead], teacher[:, ~dead], divergence)
    torch.testing.assert_close(rows.double(), want, rtol=1e-5, atol=0)
    torch.testing.assert_close(grad[:, ~dead].double(), want_grad, rtol=0, atol=1e-7)
    assert not grad[:, dead].any()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_masked_logits(divergence):
    """−inf in the teacher alone, in the student alone, in both; a teacher that is sure; a row of nothing."""
    student, teacher = torch.randn(5, 1100), torch.randn(5, 1100)
    teacher[0, 3:700] = -INF
    student[1, 5] = -INF
    student[2, 5], teacher[2, 5] = -INF, -INF
    teacher[3, 1:] = -INF
    student[4], teacher[4] = -INF, -INF
    rows, grad = run(student, teacher, divergence)
    want, want_grad = run_in_torch(student, teacher, divergence)
    torch.testing.assert_close(rows, want, rtol=1e-5, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(grad[:4], want_grad[:4], rtol=0, atol=1e-6, equal_nan=True)
    infinite = {"forward_kl": [1], "reverse_kl": [0, 3], "jsd": []}[divergence]
    assert rows[:4].isinf().nonzero().flatten().tolist() == infinite
    assert rows[4].isnan()


def run_in_torch(student, teacher, divergence):
    config = Settings(tau=1.0, divergence=divergence, beta=BETA, reduction="none", rows=1, chosen="torch")
    rows = torch.empty(len(student))
    return rows, row_pass(student, teacher, None, torch.ones(len(student)), rows, None, config)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_rows_with_nan_show_and_rows_without_factor_do_not(divergence):
    student, teacher = torch.randn(3, 1100), torch.randn(3, 1100)
    student[0, 1050], teacher[1, 4] = NAN, NAN
    rows, grad = run(student, teacher, divergence, factor=torch.tensor([1.0, 0.0, 2.0]))
    assert rows.isnan().tolist() == [True, True, False]
    assert grad[0].isnan().any()
    assert not grad[1].any()
    torch.testing.assert_close(grad[2].double(), 2 * oracle(student, teacher, divergence)[1][2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_gradient_may_overwrite_the_logits_or_be_narrower(divergence):
    student, teacher = torch.randn(2, 1100), torch.randn(2, 1100)
    _, grad = run(student, teacher, divergence)
    _, narrow = run(student, teacher, divergence, out_dtype=torch.bfloat16)
    assert torch.equal(narrow, grad.bfloat16())
    rows = torch.empty(2)
    assert torch.equal(row_pass(student, teacher, None, torch.ones(2), rows, student, settings(divergence)), grad)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("scale", [1e-4, 1e-2, 0.3])
def test_small_differences_keep_their_digits(divergence, scale):
    """The logits are exact inputs, so what is left is the rounding of δ = (x_S − x_T) − (lse_S − lse_T), about 3e-7 beside ``scale``."""
    student = torch.randn(2, 1500)
    teacher = student + scale * torch.randn(2, 1500)
    rows, grad = run(student, teacher, divergence)
    want, want_grad = oracle(student, teacher, divergence)
    torch.testing.assert_close(rows.double(), want, rtol=max(1e-5, 3e-7 / scale), atol=0)
    assert (grad.double() - want_grad).norm() <= max(1e-5, 3e-7 / scale) * want_grad.norm()


def test_a_rows_bits_do_not_depend_on_how_many_rows_there_are():
    tensors = torch.randn(9, 6), torch.randn(33, 6), torch.randn(9, 4), torch.randn(33, 4)
    whole = linear_kl(*tensors, reduction="none", chunk_rows=4, backend="triton")
    for n in (1, 4, 7):
        part = linear_kl(tensors[0][:n], tensors[1], tensors[2][:n], tensors[3], reduction="none", chunk_rows=4, backend="triton")
        assert torch.equal(part, whole[:n])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_worse_than_torch_in_the_same_dtype(dtype):
    hidden_s, hidden_t = (torch.randn(3, 16).to(dtype) for _ in range(2))
    weight_s, weight_t = ((torch.randn(500, 16) / 4).to(dtype) for _ in range(2))

    def torch_in(kind: torch.dtype) -> torch.Tensor:
        log_q, log_p = ((h.to(kind) @ w.to(kind).t()).log_softmax(1) for h, w in ((hidden_s, weight_s), (hidden_t, weight_t)))
        return torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1).double()

    want = torch_in(torch.float64)
    ours = linear_kl(hidden_s, weight_s, hidden_t, weight_t, reduction="none", backend="triton").double()
    assert (ours - want).abs().max() <= (torch_in(dtype) - want).abs().max() + 1e-6


@pytest.mark.parametrize(("width", "divergence"), [(151_936, "forward_kl"), (163_958, "jsd")])
def test_real_vocabularies(width, divergence):
    student, teacher = 2 * torch.randn(1, width), 2 * torch.randn(1, width)
    rows, grad = run(student, teacher, divergence)
    want, want_grad = oracle(student, teacher, divergence)
    torch.testing.assert_close(rows.double(), want, rtol=1e-5, atol=0)
    assert (grad.double() - want_grad).norm() <= 1e-5 * want_grad.norm()
