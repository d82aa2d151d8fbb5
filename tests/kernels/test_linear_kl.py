"""Full-vocabulary divergences and sampled log-probabilities from hidden states, against torch in float64 over the whole product."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from arkfast.kernels import linear_kl, linear_logprob

INF = float("inf")
DIVERGENCES = ["forward_kl", "reverse_kl", "jsd"]


def example(positions: int = 7, vocabulary: int = 41) -> tuple[torch.Tensor, ...]:
    """Two models of different width; logits of standard deviation 2."""
    student = torch.randn(positions, 12), 2 * torch.randn(vocabulary, 12) / 12**0.5
    return *student, torch.randn(positions, 6), 2 * torch.randn(vocabulary, 6) / 6**0.5


def dense(tensors, *, tau=1.0, divergence="forward_kl", beta=0.5, blocked=None, row_weight=None, reduction="mean"):
    """The loss from its definition, in the dtype of what comes in; differentiable."""
    hidden_s, weight_s, hidden_t, weight_t = tensors
    keep = torch.ones(len(weight_s), dtype=torch.bool)
    if blocked is not None:
        keep[blocked[blocked < len(weight_s)].long()] = False
    log_q = (hidden_s @ weight_s[keep].t() / tau).log_softmax(1)
    log_p = (hidden_t @ weight_t[keep].t() / tau).log_softmax(1)
    if divergence == "forward_kl":
        rows = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    elif divergence == "reverse_kl":
        rows = F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1)
    else:
        log_m = (beta * log_p.exp() + (1 - beta) * log_q.exp()).log()
        rows = beta * (log_p.exp() * (log_p - log_m)).sum(1) + (1 - beta) * (log_q.exp() * (log_q - log_m)).sum(1)
    rows = tau**2 * rows * (1 if row_weight is None else row_weight)
    return {"mean": rows.sum() / max(1, len(rows)), "sum": rows.sum(), "none": rows}[reduction]


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(
    ("settings", "chunk_rows"),
    [
        ({}, None),
        ({"tau": 2.5, "beta": 0.1, "blocked": torch.tensor([40, 3, 77], dtype=torch.int32)}, 3),
        ({"tau": 0.5, "beta": 0.9, "reduction": "sum", "row_weight": torch.tensor([1.0, 0, 2, 0.5, 1, 1, 3])}, 1),
        ({"reduction": "none", "row_weight": torch.tensor([1.0, 0, 2, 0.5, 1, 1, 3])}, 4),
    ],
)
def test_equals_dense_in_float64(backend, divergence, settings, chunk_rows):
    tensors = example()
    settings = {k: v.to(tensors[0].device) if isinstance(v, torch.Tensor) else v for k, v in settings.items()}
    mine = [x.clone().requires_grad_() for x in tensors]
    true = [x.double().requires_grad_() for x in tensors]
    loss = linear_kl(*mine, divergence=divergence, chunk_rows=chunk_rows, backend=backend, **settings)
    want = dense(true, divergence=divergence, **settings)
    upstream = torch.randn(want.shape)
    loss.backward(upstream)
    want.backward(upstream.double())
    assert loss.dtype == torch.float32
    # Logits of order 4 have an error of about 1e-6; it enters a divergence of order 1 to first order.
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-6)
    assert mine[2].grad is None
    assert mine[3].grad is None
    for a, b in zip(mine[:2], true[:2], strict=True):
        assert (a.grad.double() - b.grad).norm() <= 1e-5 * b.grad.norm()
    if (blocked := settings.get("blocked")) is not None:
        assert not mine[1].grad[blocked[:2].long()].any()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(backend, divergence, reduction):
    tensors = [x.double() for x in example(3, 9)]
    inputs = [x.requires_grad_() for x in tensors[:2]]
    weights = torch.tensor([1.0, 2.0, 0.5])

    def run(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return linear_kl(
            hidden,
            weight,
            *tensors[2:],
            tau=1.3,
            divergence=divergence,
            row_weight=weights,
            reduction=reduction,
            chunk_rows=2,
            backend=backend,
        )

    torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_equal_models_give_exactly_zero(backend, divergence):
    hidden, weight, *_ = example()
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    loss = linear_kl(hidden, weight, hidden, weight, divergence=divergence, tau=1.7, backend=backend)
    loss.backward()
    assert loss == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_close_models_keep_their_digits(backend, divergence):
    """Near the end of training the divergence is far smaller than the rounding of a log-probability; its digits must not drown in it."""
    hidden, weight, *_ = example()
    mine = hidden.clone().requires_grad_(), weight, hidden, weight + 1e-3 * torch.randn(weight.shape)
    true = [x.detach().double().requires_grad_() for x in mine]
    loss = linear_kl(*mine, divergence=divergence, backend=backend)
    want = dense(true, divergence=divergence)
    want.backward()
    loss.backward()
    assert 1e-7 < want < 1e-4
    if backend == "triton":
        # δ is about 2e-3 and each logit's error 2⁻²⁴ · 8: relative 2.5e-4 at one id, and the sum over 41 ids averages.
        torch.testing.assert_close(loss.double(), want, rtol=3e-4, atol=0)
        assert (mine[0].grad.double() - true[0].grad).norm() <= 3e-3 * true[0].grad.norm()
    else:
        # The reference subtracts log-probabilities: their rounding, 2⁻²⁴ · 8, is the error.
        torch.testing.assert_close(loss.double(), want, rtol=0, atol=5e-7)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_properties(backend, divergence):
    """Not negative; a shift of all logits changes nothing; the jsd is symmetric under swapping models and β."""
    tensors = example(5)
    rows = linear_kl(*tensors, divergence=divergence, beta=0.3, reduction="none", backend=backend)
    assert (rows >= 0).all()
    swapped = linear_kl(
        *tensors[2:], *tensors[:2], divergence={"forward_kl": "reverse_kl", "reverse_kl": "forward_kl"}.get(divergence, divergence),
        beta=0.7, reduction="none", backend=backend,
    )  # fmt: skip
    torch.testing.assert_close(rows, swapped, rtol=1e-5, atol=1e-6)
    ones = torch.ones(len(rows), 1)
    shifted = (torch.cat([tensors[0], ones], 1), torch.cat([tensors[1], torch.full((41, 1), 5.0)], 1), *tensors[2:])
    again = linear_kl(*shifted, divergence=divergence, beta=0.3, reduction="none", backend=backend)
    torch.testing.assert_close(rows, again, rtol=1e-5, atol=5e-6)


def test_far_apart_models(backend):
    """Probabilities that underflow: KL is the difference of the logits, the jsd is log 2 of probability mass."""
    hidden = torch.ones(1, 1)
    student, teacher = torch.zeros(5, 1), torch.zeros(5, 1)
    student[1], teacher[3] = 300.0, 300.0
    for divergence, want in (("forward_kl", 300.0), ("reverse_kl", 300.0), ("jsd", 0.6931472)):
        weight = student.clone().requires_grad_()
        loss = linear_kl(hidden, weight, hidden, teacher, divergence=divergence, backend=backend)
        loss.backward()
        assert loss.item() == pytest.approx(want, rel=1e-6)
        assert weight.grad.isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_rows_without_weight_are_zero_whatever_they_hold(backend, reduction):
    tensors = list(example(4))
    tensors[0][1], tensors[2][2] = float("nan"), INF
    hidden, head = tensors[0].requires_grad_(), tensors[1].requires_grad_()
    weight = torch.tensor([1.0, 0.0, 0.0, 1.0])
    loss = linear_kl(*tensors, row_weight=weight, reduction=reduction, chunk_rows=3, backend=backend)
    # What comes upstream to such a row may be NaN too.
    loss.backward(None if reduction == "mean" else torch.tensor([1.0, float("nan"), 1.0, 1.0]))
    assert loss.isfinite().all()
    assert hidden.grad[[1, 2]].eq(0).all()
    assert hidden.grad[[0, 3]].any(1).all()
    kept = [x[[0, 3]] if len(x) == 4 else x for x in (x.detach() for x in tensors)]
    kept[1].requires_grad_()
    (linear_kl(*kept, reduction="sum", backend=backend) / (4 if reduction == "mean" else 1)).backward()
    torch.testing.assert_close(head.grad, kept[1].grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_row_that_gets_nothing_upstream_stays_out_of_the_gradients(backend, reduction):
    tensors = list(example(4))
    tensors[0][1] = float("nan")
    hidden, head = tensors[0].requires_grad_(), tensors[1].requires_grad_()
    rows = linear_kl(*tensors, reduction="none", backend=backend)
    kept = rows[torch.tensor([0, 2, 3])]
    (kept.mean() if reduction == "mean" else kept.sum()).backward()
    assert rows.isnan().tolist() == [False, True, False, False]
    assert hidden.grad.any(1).tolist() == [True, False, True, True]
    assert hidden.grad.isfinite().all()
    assert head.grad.isfinite().all()


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_parameters_get_no_gradient_that_nobody_asked_for(backend, off):
    """Each chunk takes a product for either model, and two more for the gradients."""

    class Products(torch.utils._python_dispatch.TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += "mm" in str(func)
            return func(*args, **(kwargs or {}))

    tensors = example()
    parameters = [x.clone().requires_grad_() for x in tensors[:2]]
    with off(), Products() as quiet:
        loss = linear_kl(*parameters, *tensors[2:], backend=backend)
    with Products() as recorded:
        same = linear_kl(*parameters, *tensors[2:], backend=backend)
    assert (quiet.count, recorded.count) == (2, 4)
    assert torch.equal(loss, same)


@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=2)))
def test_each_subset_of_requires_grad(backend, wanted):
    tensors = example()
    full = [x.clone().requires_grad_() for x in tensors[:2]]
    linear_kl(*full, *tensors[2:], divergence="jsd", backend=backend).backward()
    some = [x.clone().requires_grad_(w) for x, w in zip(tensors[:2], wanted, strict=True)]
    loss = linear_kl(*some, *tensors[2:], divergence="jsd", backend=backend)
    assert loss.requires_grad == any(wanted)
    if any(wanted):
        loss.backward()
    for x, reference, w in zip(some, full, wanted, strict=True):
        assert (x.grad is not None) == w
        assert not w or torch.equal(x.grad, reference.grad)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_empty_batch_has_a_live_graph(backend, reduction):
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    loss = linear_kl(hidden, weight, torch.zeros(0, 3), torch.randn(7, 3), reduction=reduction, backend=backend)
    loss.sum().backward()
    assert loss.sum() == 0
    assert hidden.grad.shape == (0, 4)
    assert not weight.grad.any()


def test_bfloat16_inputs_are_summed_in_float32(backend):
    tensors = [x.bfloat16() for x in example()]
    narrow = [x.clone().requires_grad_() for x in tensors[:2]]
    wide = [x.float().requires_grad_() for x in tensors[:2]]
    loss = linear_kl(*narrow, *tensors[2:], backend=backend)
    want = linear_kl(*wide, *(x.float() for x in tensors[2:]), backend=backend)
    loss.backward()
    want.backward()
    # On a GPU dL/dlogits is rounded to bf16 before the products: 2⁻⁹ for each, averaging in the sum, and 2⁻⁹ for the result.
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=0)
    for a, b in zip(narrow, wide, strict=True):
        assert a.grad.dtype == torch.bfloat16
        assert (a.grad.float() - b.grad).norm() <= 4e-3 * b.grad.norm()


# linear_logprob


def logprob_oracle(hidden, weight, target, tau=1.0, blocked=None):
    logits = hidden @ weight.t() / tau
    if blocked is not None:
        logits = logits.index_fill(1, blocked.long(), -INF)
    logq = logits.log_softmax(1)
    entropy = -(logq.exp() * logq.masked_fill(logq == -INF, 0.0)).sum(1)
    return logq.gather(1, target.clamp_min(0)[:, None])[:, 0] * (target >= 0), entropy


@pytest.mark.parametrize("tau", [1.0, 2.5])
@pytest.mark.parametrize("blocked", [None, torch.tensor([39, 36], dtype=torch.int32)])
@pytest.mark.parametrize("chunk_rows", [None, 4])
def test_logprob_and_entropy(backend, tau, blocked, chunk_rows):
    hidden, weight, *_ = example(11)
    blocked = None if blocked is None else blocked.to(hidden.device)
    target = torch.randint(-1, 30, (11,))
    mine = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    true = hidden.double().requires_grad_(), weight.double().requires_grad_()
    settings = {"tau": tau, "blocked": blocked}
    logp, entropy = linear_logprob(*mine, target, entropy=True, chunk_rows=chunk_rows, backend=backend, **settings)
    want, want_entropy = logprob_oracle(*true, target, **settings)
    g, g_entropy = torch.randn(11), torch.randn(11)
    (logp @ g + entropy @ g_entropy).backward()
    (want @ g.double() + want_entropy @ g_entropy.double()).backward()
    # Values of order 8: two ulps of 8·2⁻²³ each for the logit and the log-sum-exp; an entropy of order 3 sums 41 terms.
    torch.testing.assert_close(logp.double(), want, rtol=0, atol=4e-6)
    torch.testing.assert_close(entropy.double(), want_entropy, rtol=0, atol=4e-6)
    for a, b in zip(mine, true, strict=True):
        assert (a.grad.double() - b.grad).norm() <= 1e-5 * b.grad.norm()
    alone = linear_logprob(hidden, weight, target, chunk_rows=chunk_rows, backend=backend, **settings)
    assert torch.equal(alone, logp)


def test_logprob_gradcheck(backend):
    hidden, weight, *_ = (x.double() for x in example(3, 9))
    inputs = hidden.requires_grad_(), weight.requires_grad_()
    target, blocked = torch.tensor([2, -1, 4]), torch.tensor([7])
    torch.autograd.gradcheck(
        lambda h, w: linear_logprob(h, w, target, entropy=True, tau=0.7, blocked=blocked, chunk_rows=2, backend=backend), inputs
    )


def test_entropy_of_known_distributions(backend):
    """Uniform over what is left has the log of its number; one sure id has 0."""
    hidden = torch.tensor([[0.0], [1.0]])
    weight = torch.zeros(8, 1)
    weight[2] = 200.0
    _, entropy = linear_logprob(hidden, weight, torch.tensor([2, 2]), entropy=True, blocked=torch.tensor([7]), backend=backend)
    assert entropy.tolist() == pytest.approx([1.9459101, 0.0], rel=1e-6)


BAD = [
    (lambda t: linear_kl(t[0], t[1], t[2][:2], t[3]), r"linear_kl: hidden_t must have shape \[T=7, Ht\], got \[2, 6\]"),
    (lambda t: linear_kl(t[0], t[1], t[2], t[3][:9]), r"linear_kl: weight_t must have shape \[V=41, Ht=6\], got \[9, 6\]"),
    (lambda t: linear_kl(*t, divergence="kl"), "linear_kl: divergence must be one of 'forward_kl', 'reverse_kl', 'jsd', got 'kl'"),
    (lambda t: linear_kl(*t, divergence="jsd", beta=1.0), "linear_kl: beta must lie between 0 and 1 for divergence='jsd', got 1.0"),
    (lambda t: linear_kl(*t, reduction="avg"), "linear_kl: reduction must be one of 'mean', 'sum', 'none', got 'avg'"),
    (lambda t: linear_kl(*t, tau=0.0), "linear_kl: tau must be a finite temperature above 0, got 0.0"),
    (lambda t: linear_kl(*t, row_weight=torch.ones(3)), r"linear_kl: row_weight must have shape \[T=7\], got \[3\]"),
    (lambda t: linear_kl(*t, chunk_rows=0), "linear_kl: chunk_rows must be a whole number of at least 1, got 0"),
    (lambda t: linear_kl(t[0], t[1][:0], t[2], t[3][:0]), "linear_kl: weight_s must have at least one row"),
    (lambda t: linear_kl(*t, backend="cuda"), "linear_kl: backend must be one of 'auto', 'triton', 'torch', got 'cuda'"),
    (lambda t: linear_logprob(t[0], t[1], torch.zeros(3).long()), r"linear_logprob: target must have shape \[T=7\], got \[3\]"),
    (lambda t: linear_logprob(t[0], t[1], torch.zeros(7)), "linear_logprob: target must hold ids as int32 or int64, got torch.float32"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(example())


def test_no_tensor_of_all_positions_by_the_vocabulary():
    hidden_s, weight_s, hidden_t, weight_t = example(300, 2000)
    seen = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal seen
            result = func(*args, **(kwargs or {}))
            for x in result if isinstance(result, tuple) else (result,):
                seen = max(seen, x.numel() if isinstance(x, torch.Tensor) else 0)
            return result

    with Largest():
        linear_kl(hidden_s.requires_grad_(), weight_s.requires_grad_(), hidden_t, weight_t, chunk_rows=32).backward()
    assert seen <= 32 * 2000
