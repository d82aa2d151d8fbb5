"""The log-softmax kernels at shapes and values that hurt, in Triton's interpreter; the op's contract is tested in the folder above."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import UnfitError, linear_log_softmax, linear_logprob, row_log_softmax
from arkfast.kernels.log_softmax.op import RowStats, row_grad, row_stats

INF, NAN = float("inf"), float("nan")
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Relative error of one rounding."""


def oracle(logits: torch.Tensor, ids: torch.Tensor, tau: float = 1.0, dead: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """float64 log-probabilities at ids, log-sum-exp and entropy of rows whose largest logit is finite."""
    x = logits.double() / tau
    if dead is not None:
        x = x.masked_fill(dead, -INF)
    logp = x.log_softmax(1)
    entropy = -(logp.exp() * logp.masked_fill(logp == -INF, 0.0)).sum(1)
    return logp.gather(1, ids.clamp_min(0)).masked_fill(ids < 0, 0.0), x.logsumexp(1), entropy


# One column, a block less, equal to and more by one than a power of two, two blocks and a prime tail.
@pytest.mark.parametrize("width", [1, 2047, 2048, 2049, 4099])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_and_gradients(width, dtype):
    buffer = (3 * torch.randn(3, width + 5)).to(dtype)
    logits = buffer[:, 2 : width + 2]  # rows that are neither contiguous nor aligned
    ids = torch.randint(0, width, (3, 4))
    ids[0, 1], ids[1] = ids[0, 0], -1
    mine, true = logits.clone().requires_grad_(), logits.double().requires_grad_()
    logp, lse = row_log_softmax(buffer[:, 2 : width + 2], ids, tau=1.5, return_lse=True, backend="triton")
    want, want_lse, _ = oracle(true, ids, 1.5)
    bound = 2e-6 * (1 + float(want_lse.detach().abs().max()))
    assert (lse - want_lse).abs().max() <= bound
    assert (logp - want).abs().max() <= 2 * bound
    logp, lse = row_log_softmax(mine, ids, tau=1.5, return_lse=True, backend="triton")
    g, g_lse = torch.randn(3, 4), torch.randn(3)
    ((logp * g).sum() + (lse * g_lse).sum()).backward()
    ((want * g).sum() + (want_lse * g_lse).sum()).backward()
    # One rounding to the logits' dtype, on top of sums of a few numbers of order 1.
    error = (mine.grad.double() - true.grad).abs()
    assert (error <= UNIT[dtype] * true.grad.abs() + 1e-6).all()


@pytest.mark.parametrize("slots", [0, 1, 16, 17, 64, 65, 128])
def test_any_number_of_ids(slots):
    """Repeats among them, so that a column's gradient is a sum; −1 in between; 128 is the most that the kernels take."""
    logits = torch.randn(2, 300).requires_grad_()
    ids = torch.randint(-1, 40, (2, slots))
    true = logits.detach().double().requires_grad_()
    logp = row_log_softmax(logits, ids, backend="triton")
    want, *_ = oracle(true, ids)
    g = torch.randn(2, slots)
    (logp * g).sum().backward()
    (want * g).sum().backward()
    assert logp.shape == (2, slots)
    torch.testing.assert_close(logp.double(), want, rtol=0, atol=2e-6)
    torch.testing.assert_close(logits.grad.double(), true.grad, rtol=0, atol=1e-5)
    with pytest.raises(UnfitError, match="more than 128 ids a row"):
        row_log_softmax(logits, torch.zeros(2, 129).long(), backend="triton")


def test_values_that_are_not_numbers_spread_as_in_torch():
    logits = torch.randn(6, 2500)
    logits[0] = -INF
    logits[1, 7] = NAN
    logits[2, 2400] = INF
    logits[3, [3, 2100]] = INF
    logits[4, 1:] = -INF
    logits[5, 100:2200] = -INF
    ids = torch.tensor([[7, 2400, 0]]).expand(6, 3)
    logp, lse = row_log_softmax(logits, ids, return_lse=True, backend="triton")
    want, want_lse = row_log_softmax(logits, ids, return_lse=True, backend="torch")
    torch.testing.assert_close(lse, want_lse, rtol=1e-6, atol=0, equal_nan=True)
    torch.testing.assert_close(logp, want, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert lse[[0, 2, 3]].tolist() == [-INF, INF, INF]
    assert lse[1].isnan()
    assert logp[4].tolist() == [-INF, -INF, 0]


def test_blocked_columns_in_the_loop_and_in_the_tail():
    logits, blocked = torch.randn(2, 2100).requires_grad_(), torch.tensor([2099, 5, 7000, -3], dtype=torch.int32)
    ids = torch.tensor([[5, 2099, 6], [1, -1, 5]])
    dead = torch.zeros(2100, dtype=torch.bool)
    dead[[5, 2099]] = True
    true = logits.detach().double().requires_grad_()
    logp = row_log_softmax(logits, ids, blocked=blocked, backend="triton")
    want, *_ = oracle(true, ids, dead=dead)
    assert torch.equal(logp == -INF, want == -INF)
    logp.masked_fill(logp == -INF, 0.0).sum().backward()
    want.masked_fill(want == -INF, 0.0).sum().backward()
    torch.testing.assert_close(logits.grad.double(), true.grad, rtol=0, atol=2e-6)
    assert not logits.grad[:, dead].any()


def test_an_id_past_the_end_shows():
    logp = row_log_softmax(torch.randn(1, 10), torch.tensor([[10, 3, 1 << 40]]), backend="triton")
    assert logp.isnan().tolist() == [[True, False, True]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_worse_than_torch_in_the_same_dtype(dtype):
    logits, ids = (4 * torch.randn(2, 4099)).to(dtype), torch.randint(0, 4099, (2, 8))
    want, *_ = oracle(logits, ids)
    ours = (row_log_softmax(logits, ids, backend="triton") - want).abs().max()
    theirs = (logits.log_softmax(1).gather(1, ids) - want).abs().max()
    assert ours <= theirs + 1e-6


def test_entropy_and_its_gradient():
    logits = torch.randn(3, 2500)
    logits[1, 100:] = -INF
    logits[2, :] = 0.0
    ids = torch.randint(0, 100, (3, 2))
    stats = row_stats(logits, ids, tau=0.7, dead=None, need_entropy=True, chosen="triton")
    true = logits.double().requires_grad_()
    logp, _, entropy = oracle(true, ids, 0.7)
    torch.testing.assert_close(stats.entropy.double(), entropy, rtol=2e-6, atol=2e-6)
    g = torch.randn(3, 2), torch.randn(3), torch.randn(3)
    finite = true.masked_fill(true == -INF, -1e300)  # autograd's −inf · 0 is NaN
    logp, lse, entropy = oracle(finite, ids, 0.7)
    ((logp * g[0]).sum() + (lse * g[1]).sum() + (entropy * g[2]).sum()).backward()
    out = torch.empty_like(logits)
    row_grad(g, logits, stats, ids, out, tau=0.7, dead=None, chosen="triton")
    torch.testing.assert_close(out.double(), true.grad, rtol=0, atol=5e-6)


def test_the_gradient_may_overwrite_the_logits_or_be_narrower():
    logits, ids = torch.randn(2, 2500), torch.tensor([[4, 4, 9], [-1, 2, 2499]])
    stats = row_stats(logits, ids, tau=1.0, dead=None, need_entropy=False, chosen="triton")
    assert isinstance(stats, RowStats)
    grads = (torch.randn(2, 3), None, None)
    apart, narrow = torch.empty_like(logits), torch.empty(2, 2500, dtype=torch.bfloat16)
    for out in (apart, narrow, logits):
        row_grad(grads, logits, stats, ids, out, tau=1.0, dead=None, chosen="triton")
    assert torch.equal(logits, apart)
    assert torch.equal(narrow, apart.bfloat16())


def test_a_rows_bits_do_not_depend_on_how_many_rows_there_are():
    hidden, weight, ids = torch.randn(9, 6), torch.randn(33, 6), torch.randint(0, 33, (9, 2))
    whole = linear_log_softmax(hidden, weight, ids, chunk_rows=4, backend="triton")
    for n in (1, 3, 4, 5, 8):
        assert torch.equal(linear_log_softmax(hidden[:n], weight, ids[:n], chunk_rows=4, backend="triton"), whole[:n])


@pytest.mark.parametrize("width", [151_936, 163_958])
def test_real_vocabularies(width):
    """Logits as a head gives them: bf16 inputs, standard deviation near 3, a few ids blocked at the end."""
    hidden, weight = torch.randn(2, 8).bfloat16(), torch.randn(width, 8).bfloat16()
    target, blocked = torch.tensor([0, width - 400]), torch.arange(width - 300, width, dtype=torch.int32)
    x = hidden.clone().requires_grad_()
    logp, entropy = linear_logprob(x, weight, target, entropy=True, blocked=blocked, backend="triton")
    (logp.sum() + entropy.sum()).backward()
    true = hidden.double().requires_grad_()
    logits = (true @ weight.double().t())[:, : width - 300]
    want = logits.log_softmax(1)
    want_entropy = -(want.exp() * want).sum(1)
    (want.gather(1, target[:, None]).sum() + want_entropy.sum()).backward()
    torch.testing.assert_close(logp.double(), want.gather(1, target[:, None])[:, 0], rtol=0, atol=2e-5)
    torch.testing.assert_close(entropy.double(), want_entropy, rtol=0, atol=2e-5)
    assert (x.grad.double() - true.grad).norm() <= 4e-3 * true.grad.norm()
