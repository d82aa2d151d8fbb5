"""Log-probabilities of chosen ids, from logits and from hidden states, against torch's log_softmax over all of them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from arkfast.kernels import linear_log_softmax, row_log_softmax

INF = float("inf")


def example(positions: int = 11, features: int = 12, vocabulary: int = 40, width: int = 5) -> tuple[torch.Tensor, ...]:
    """Logits of standard deviation 1; ids with repeats and holes, none of them ≥ vocabulary − 5."""
    ids = torch.randint(-1, vocabulary - 5, (positions, width))
    ids[0, :2] = 3
    return torch.randn(positions, features), torch.randn(vocabulary, features) / features**0.5, ids


def dense(hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, tau: float, blocked: torch.Tensor | None):
    logits = hidden @ weight.t() / tau
    if blocked is not None:
        logits = logits.index_fill(1, blocked.long(), -INF)
    return logits.log_softmax(1).gather(1, ids.clamp_min(0)) * (ids >= 0), logits.logsumexp(1)


@pytest.mark.parametrize("tau", [1.0, 2.5])
@pytest.mark.parametrize("blocked", [None, torch.tensor([39, 36], dtype=torch.int32)])
@pytest.mark.parametrize("chunk_rows", [None, 1, 4])
def test_equals_dense_in_float64(backend, tau, blocked, chunk_rows):
    hidden, weight, ids = example()
    mine = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    true = hidden.double().requires_grad_(), weight.double().requires_grad_()
    blocked = None if blocked is None else blocked.to(hidden.device)
    settings = {"tau": tau, "blocked": blocked}
    logp, lse = linear_log_softmax(*mine, ids, return_lse=True, chunk_rows=chunk_rows, backend=backend, **settings)
    want, want_lse = dense(*true, ids, **settings)
    g, g_lse = torch.randn(ids.shape), torch.randn(len(ids))
    ((logp * g).sum() + (lse * g_lse).sum()).backward()
    ((want * g).sum() + (want_lse * g_lse).sum()).backward()
    assert logp.dtype == lse.dtype == torch.float32
    # Values of order 4: two ulps of 4·2⁻²³ each for the logit and the log-sum-exp.
    torch.testing.assert_close(logp.double(), want, rtol=0, atol=2e-6)
    torch.testing.assert_close(lse.double(), want_lse, rtol=0, atol=1e-6)
    for a, b in zip(mine, true, strict=True):
        assert (a.grad.double() - b.grad).norm() <= 1e-6 * b.grad.norm()
    if blocked is not None:
        assert not mine[1].grad[blocked.long()].any()


def test_cross_entropy_of_targets(backend):
    hidden, weight, ids = example(width=1)
    ids = ids.clamp_min(0)
    got = -linear_log_softmax(hidden, weight, ids, backend=backend).mean()
    torch.testing.assert_close(got, F.cross_entropy(hidden @ weight.t(), ids[:, 0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("output", ["logp", "lse"])
def test_gradcheck(backend, output):
    hidden, weight, ids = example(4, 3, 9, 2)
    inputs = hidden.double().requires_grad_(), weight.double().requires_grad_()

    def run(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        logp, lse = linear_log_softmax(h, w, ids, tau=1.3, blocked=torch.tensor([8]), return_lse=True, chunk_rows=3, backend=backend)
        return logp if output == "logp" else lse

    torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=2)))
def test_each_subset_of_requires_grad(backend, wanted):
    hidden, weight, ids = example()
    full = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    linear_log_softmax(*full, ids, backend=backend).sum().backward()
    some = [x.clone().requires_grad_(w) for x, w in zip((hidden, weight), wanted, strict=True)]
    logp = linear_log_softmax(*some, ids, backend=backend)
    assert logp.requires_grad == any(wanted)
    if any(wanted):
        logp.sum().backward()
    for x, reference, w in zip(some, full, wanted, strict=True):
        assert (x.grad is not None) == w
        assert not w or torch.equal(x.grad, reference.grad)


def test_empty_slots_and_blocked_targets_carry_no_gradient(backend):
    hidden, weight, _ = example(3)
    ids = torch.tensor([[-1, -1], [7, -1], [38, 38]])
    hidden = hidden.requires_grad_()
    logp = linear_log_softmax(hidden, weight, ids, blocked=torch.tensor([38, 100]), backend=backend)
    logp[:2].sum().backward(retain_graph=True)
    assert logp[0].tolist() == [0, 0]
    assert logp[2].tolist() == [-INF, -INF]
    assert hidden.grad.any(1).tolist() == [False, True, False]
    hidden.grad = None
    logp[2].sum().backward()
    assert not hidden.grad.any()


def test_a_row_that_gets_no_gradient_gives_none_whatever_it_holds(backend):
    """No id, nothing upstream of its log-probabilities, its log-sum-exp or its entropy; rows that get some keep their NaN."""
    hidden, weight, _ = example(5)
    ids = torch.tensor([[3, 7], [-1, -1], [5, 5], [-1, 2], [1, -1]])
    hidden[1], hidden[2], hidden[4] = float("nan"), float("inf"), float("nan")
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    logp, lse = linear_log_softmax(hidden, weight, ids, return_lse=True, chunk_rows=2, backend=backend)
    assert logp[1].tolist() == [0, 0]
    one = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0])
    upstream = one[:, None].expand(5, 2), torch.tensor([0.5, 0, 0, 0, 0])
    quiet = torch.autograd.grad((logp, lse), (hidden, weight), upstream, retain_graph=True)
    assert all(grad.isfinite().all() for grad in quiet)
    assert quiet[0].any(1).tolist() == [True, False, False, True, False]
    for outputs, upstream in (((logp,), (torch.ones(5, 2),)), ((lse,), (one,))):
        loud = torch.autograd.grad(outputs, (hidden, weight), upstream, retain_graph=True)
        assert loud[1].isnan().any()
    logits = (hidden @ weight.t()).detach().requires_grad_()
    (grad,) = torch.autograd.grad(row_log_softmax(logits, ids, backend=backend), logits, one[:, None].expand(5, 2))
    assert grad.isfinite().all()
    assert grad.any(1).tolist() == [True, False, False, True, False]


def test_bfloat16_inputs_are_summed_in_float32(backend):
    hidden, weight, ids = example()
    hidden, weight = hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_()
    logp = linear_log_softmax(hidden, weight, ids, backend=backend)
    logp.sum().backward()
    wide = hidden.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    want = linear_log_softmax(*wide, ids, backend=backend)
    want.sum().backward()
    if hidden.is_cuda:
        # Tensor cores sum in another order, and dL/dlogits is rounded to bf16 (2⁻⁹ each, averaging in the sum) before the products.
        torch.testing.assert_close(logp, want, rtol=0, atol=2e-6)
        for narrow, exact in ((hidden, wide[0]), (weight, wide[1])):
            assert (narrow.grad.float() - exact.grad).norm() <= 4e-3 * exact.grad.norm()
        return
    assert torch.equal(logp, want)
    assert torch.equal(hidden.grad, wide[0].grad.bfloat16())
    assert torch.equal(weight.grad, wide[1].grad.bfloat16())


def test_empty_batch_has_a_live_graph(backend):
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    logp = linear_log_softmax(hidden, weight, torch.zeros(0, 2, dtype=torch.int32), backend=backend)
    logp.sum().backward()
    assert logp.shape == (0, 2)
    assert hidden.grad.shape == (0, 4)
    assert not weight.grad.any()


def test_autocast_does_not_narrow(backend):
    hidden, weight, ids = example()
    want = linear_log_softmax(hidden, weight, ids, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear_log_softmax(hidden, weight, ids, backend=backend), want)


@pytest.mark.parametrize("tau", [1.0, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_logits_equal_dense_in_float64(backend, tau, dtype):
    hidden, weight, ids = example()
    logits = (hidden @ weight.t()).to(dtype)
    blocked = torch.tensor([39, 36, 99], dtype=torch.int32, device=logits.device)
    mine, true = logits.clone().requires_grad_(), logits.double().requires_grad_()
    logp, lse = row_log_softmax(mine, ids, tau=tau, blocked=blocked, return_lse=True, backend=backend)
    masked = (true / tau).index_fill(1, blocked[:2].long(), -INF)
    want, want_lse = masked.log_softmax(1).gather(1, ids.clamp_min(0)) * (ids >= 0), masked.logsumexp(1)
    g, g_lse = torch.randn(ids.shape), torch.randn(len(ids))
    ((logp * g).sum() + (lse * g_lse).sum()).backward()
    ((want * g).sum() + (want_lse * g_lse).sum()).backward()
    assert logp.dtype == lse.dtype == torch.float32
    torch.testing.assert_close(logp.double(), want, rtol=0, atol=2e-6)
    torch.testing.assert_close(lse.double(), want_lse, rtol=0, atol=1e-6)
    assert mine.grad.dtype == dtype
    assert (mine.grad.double() - true.grad).norm() <= (1e-6 if dtype == torch.float32 else 2.0**-8) * true.grad.norm()
    assert not mine.grad[:, [36, 39]].any()


def test_rows_of_logits_gradcheck(backend):
    logits = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[1, 1], [-1, 4], [8, 0]])
    torch.autograd.gradcheck(lambda x: row_log_softmax(x, ids, tau=0.6, return_lse=True, backend=backend), (logits,))


def test_rows_of_logits_are_what_the_linear_function_gives(backend):
    hidden, weight, ids = example()
    want = linear_log_softmax(hidden, weight, ids, backend=backend)
    torch.testing.assert_close(row_log_softmax(hidden @ weight.t(), ids, backend=backend), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, i: row_log_softmax(x[0], i), r"row_log_softmax: logits must have shape \[T, V\], got \[4\]"),
        (lambda x, i: row_log_softmax(x, i[:2]), r"row_log_softmax: ids must have shape \[T=3, U\], got \[2, 2\]"),
        (lambda x, i: row_log_softmax(x, i.float()), "row_log_softmax: ids must hold ids as int32 or int64"),
        (lambda x, i: row_log_softmax(x, i, tau=-1.0), "row_log_softmax: tau must be a finite temperature above 0"),
        (lambda x, i: row_log_softmax(x[:, :0], i), "row_log_softmax: logits must have at least one column"),
        (
            lambda x, i: row_log_softmax(x, i, backend="cuda"),
            "row_log_softmax: backend must be one of 'auto', 'triton', 'torch', got 'cuda'",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3, 4), torch.zeros(3, 2, dtype=torch.int64))
