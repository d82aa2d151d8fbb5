"""Ids that each row may have, as ranges of its own: every op that takes them equals masking by hand, in float64 and one row at a time.

The oracle looks at a row's own small vocabulary: the ids that are in one of its ranges and not blocked.
"""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import (
    FLAG_INF,
    FLAG_NAN,
    FLAG_SHORT,
    linear_kl,
    linear_log_softmax,
    linear_logprob,
    linear_topk_lse,
    row_log_softmax,
    topk_lse,
    union_topk_kl,
)

INF = float("inf")


def make_ranges(width: int, count: int = 1) -> torch.Tensor:
    """Nine rows: everything, a middle part, the first id, the last, none twice over, past the end, before the beginning, one block's worth.
    Further ranges are random, so that some overlap and most leave gaps."""
    third = width // 3
    first = [(0, width), (third, 2 * third), (0, 1), (width - 1, width), (7, 7), (9, 2), (width - 3, 2**31 - 1), (-5, 4), (16, 48)]
    more = torch.randint(0, width, (len(first), count - 1, 2)).sort(2).values
    more[4:6] = 5  # the rows that have no id keep none
    return torch.cat([torch.tensor(first)[:, None], more], 1).to(torch.int32)


def allowed(ranges: torch.Tensor, width: int, blocked: torch.Tensor | None = None) -> list[list[int]]:
    """Each row's ids, in plain Python."""
    gone = set() if blocked is None else set(blocked.tolist())
    return [[i for i in range(width) if i not in gone and any(a <= i < b for a, b in row)] for row in ranges.tolist()]


def masked(logits: torch.Tensor, ids: list[list[int]]) -> torch.Tensor:
    """float64 logits, −inf where a row may not have an id."""
    out = torch.full(logits.shape, -INF, dtype=torch.float64)
    for row, own, source in zip(out, ids, logits.double(), strict=True):
        row[own] = source[own]
    return out


def best(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(values, ids) of a stable sort, so that equal values keep ascending ids."""
    x = torch.where(x.isnan(), -INF, x) + 0.0
    values, ids = torch.sort(torch.cat([x, torch.full((len(x), k), -INF, dtype=x.dtype)], 1), dim=1, descending=True, stable=True)
    return values[:, :k], torch.where(values == -INF, -1, ids)[:, :k]


# One block of a row, two with a tail, and rows of several programs.
@pytest.mark.parametrize("width", [97, 4500, 20_011])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_topk(backend, width, count, dtype):
    ranges, blocked = make_ranges(width, count), torch.tensor([17, width - 2, 20], dtype=torch.int32)
    logits = (torch.randn(len(ranges), width) * 3).to(dtype)
    logits[:, 30] = logits[:, 33] = 20.0  # the best of all, twice, in ranges and outside
    gather_ids = torch.cat([torch.randint(-1, width, (len(ranges), 4)), torch.tensor([[0, 30, width - 1, 20]]).expand(len(ranges), 4)], 1)
    got = topk_lse(logits, 6, blocked=blocked, ranges=ranges, gather_ids=gather_ids, need_lse=True, backend=backend)
    want = masked(logits, allowed(ranges, width, blocked))
    values, ids = best(want, 6)
    assert torch.equal(got.values.double(), values)
    assert torch.equal(got.ids.long(), ids)
    assert torch.equal(got.gathered.double(), want.gather(1, gather_ids.clamp_min(0)).masked_fill(gather_ids < 0, -INF))
    assert got.flags.tolist() == [FLAG_SHORT if -1 in row else 0 for row in ids.tolist()]
    torch.testing.assert_close(got.lse.double(), want.logsumexp(1), rtol=0, atol=4e-5)
    assert got.lse[4:6].tolist() == [-INF, -INF]
    assert got.ids[4:6].eq(-1).all()


def test_what_is_outside_flags_nothing(backend):
    """A NaN, an infinity: in the row's range they count, outside they are blocked."""
    logits = torch.randn(4, 100)
    logits[:, 10], logits[:, 20] = float("nan"), INF
    ranges = torch.tensor([[[0, 100]], [[0, 15]], [[15, 100]], [[30, 90]]], dtype=torch.int32)
    got = topk_lse(logits, 3, ranges=ranges, need_lse=True, backend=backend)
    assert got.flags.tolist() == [FLAG_NAN | FLAG_INF, FLAG_NAN, FLAG_INF, 0]
    assert got.lse.isfinite().tolist() == [False, True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mapped", [False, True])
def test_topk_of_a_linear_layer(backend, dtype, mapped):
    """More rows than a chunk; ranges are of output ids where columns have a map, which is a permutation with holes."""
    rows, width, out = 72, 211, 300
    hidden, weight = torch.randint(-2, 3, (rows, 6)).to(dtype), torch.randint(-2, 3, (width, 6)).to(dtype)
    vocab_map = torch.randperm(out)[:width].to(torch.int32) if mapped else None
    if vocab_map is not None:
        vocab_map[[3, 40]] = -1
    ids = torch.arange(width) if vocab_map is None else vocab_map.long()
    ranges = make_ranges(out if mapped else width, 2).repeat(8, 1, 1)
    blocked = torch.tensor([19, 21, 100], dtype=torch.int32)
    gather_ids = torch.randint(-1, out if mapped else width, (rows, 5), dtype=torch.int32)
    product = torch.full((rows, out), -INF, dtype=torch.float64)
    product[:, ids[ids >= 0]] = (hidden.double() @ weight.double().t())[:, ids >= 0]
    want = masked(product, allowed(ranges, out, blocked))
    settings = {"vocab_map": vocab_map, "blocked": blocked, "ranges": ranges, "gather_ids": gather_ids}
    got = linear_topk_lse(hidden, weight, 7, need_lse=True, backend=backend, **settings)
    values, order = best(want, 7)
    assert torch.equal(got.values.double(), values)
    assert torch.equal(got.ids.long(), order)
    assert torch.equal(got.gathered.double(), want.gather(1, gather_ids.clamp_min(0).long()).masked_fill(gather_ids < 0, -INF))
    torch.testing.assert_close(got.lse.double(), want.logsumexp(1), rtol=0, atol=4e-5)
    part = linear_topk_lse(
        hidden[60:70], weight, 7, vocab_map=vocab_map, blocked=blocked, ranges=ranges[60:70], need_lse=True, backend=backend
    )
    assert torch.equal(part.ids, got.ids[60:70])
    assert torch.equal(part.lse, got.lse[60:70])


def example(width: int, count: int) -> tuple[torch.Tensor, ...]:
    """(hidden, weight, ids, ranges, blocked): two targets a row that it may have and one that it may not, of rows that have any id."""
    ranges, blocked = make_ranges(width, count), torch.tensor([20, width - 2], dtype=torch.int32)
    ranges = ranges[[0, 1, 2, 3, 6, 7, 8]]
    own = allowed(ranges, width, blocked)
    ids = torch.tensor([[row[0], row[len(row) // 2], 20] for row in own])
    return torch.randn(len(ranges), 12), 2 * torch.randn(width, 12) / 12**0.5, ids, ranges, blocked


def dense_log_softmax(logits: torch.Tensor, ids: torch.Tensor, own: list[list[int]]) -> tuple[torch.Tensor, ...]:
    """(log-probabilities at the first two ids, log-sum-exp, entropy) of float64 logits, each row over its own ids."""
    logp, lse, entropy = [], [], []
    for row, wanted, mine in zip(logits, ids.tolist(), own, strict=True):
        p = row[mine].log_softmax(0)
        logp.append(torch.stack([p[mine.index(i)] for i in wanted[:2]]))
        lse.append(row[mine].logsumexp(0))
        entropy.append(-(p.exp() * p).sum())
    return torch.stack(logp), torch.stack(lse), torch.stack(entropy)


@pytest.mark.parametrize(("width", "count"), [(97, 1), (2500, 3)])  # one block, and two with a tail
@pytest.mark.parametrize("tau", [1.0, 2.5])
def test_linear_log_softmax(backend, width, count, tau):
    hidden, weight, ids, ranges, blocked = example(width, count)
    mine, true = (hidden.requires_grad_(), weight.requires_grad_()), (hidden.detach().double(), weight.detach().double())
    true = tuple(x.requires_grad_() for x in true)
    logp, lse = linear_log_softmax(
        *mine, ids, tau=tau, blocked=blocked, ranges=ranges, return_lse=True, chunk_rows=3, backend=backend
    )  # fmt: skip
    own = allowed(ranges, width, blocked)
    want, want_lse, _ = dense_log_softmax(true[0] @ true[1].t() / tau, ids, own)
    assert logp[:, 2].tolist() == [-INF] * len(ids)
    torch.testing.assert_close(logp[:, :2].double(), want, rtol=0, atol=4e-6)
    torch.testing.assert_close(lse.double(), want_lse, rtol=0, atol=4e-6)
    g, g_lse = torch.randn(len(ids), 3), torch.randn(len(ids))
    ((logp.masked_fill(logp == -INF, 0.0) * g).sum() + (lse * g_lse).sum()).backward()
    ((want * g[:, :2]).sum() + (want_lse * g_lse).sum()).backward()
    for a, b in zip(mine, true, strict=True):
        assert (a.grad.double() - b.grad).norm() <= 1e-5 * b.grad.norm()
    nobodys = sorted(set(range(width)) - {i for row in own for i in row})
    assert not mine[1].grad[nobodys].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "count"), [(97, 3), (2500, 1)])
def test_row_log_softmax(backend, width, count, dtype):
    hidden, weight, ids, ranges, blocked = example(width, count)
    mine = (hidden @ weight.t()).to(dtype).requires_grad_()
    true = mine.detach().double().requires_grad_()
    logp, lse = row_log_softmax(mine, ids, blocked=blocked, ranges=ranges, return_lse=True, backend=backend)
    own = allowed(ranges, width, blocked)
    want, want_lse, _ = dense_log_softmax(true, ids, own)
    assert logp[:, 2].tolist() == [-INF] * len(ids)
    torch.testing.assert_close(logp[:, :2].double(), want, rtol=0, atol=4e-6)
    torch.testing.assert_close(lse.double(), want_lse, rtol=0, atol=4e-6)
    (logp[:, :2].sum() + lse.sum()).backward()
    (want.sum() + want_lse.sum()).backward()
    unit = 1e-6 if dtype == torch.float32 else 2.0**-8
    torch.testing.assert_close(mine.grad.double(), true.grad, rtol=unit, atol=1e-6)
    for row, gradient in zip(own, mine.grad, strict=True):
        assert gradient.index_fill(0, torch.tensor(row), 0.0).eq(0).all()


def test_linear_logprob_and_entropy(backend):
    hidden, weight, ids, ranges, blocked = example(4500, 2)
    mine, true = (hidden.requires_grad_(), weight.requires_grad_()), (hidden.detach().double(), weight.detach().double())
    true = tuple(x.requires_grad_() for x in true)
    logp, entropy = linear_logprob(*mine, ids[:, 1], entropy=True, blocked=blocked, ranges=ranges, backend=backend)
    want, _, want_entropy = dense_log_softmax(true[0] @ true[1].t(), ids, allowed(ranges, 4500, blocked))
    torch.testing.assert_close(logp.double(), want[:, 1], rtol=0, atol=4e-6)
    torch.testing.assert_close(entropy.double(), want_entropy, rtol=0, atol=4e-6)
    (logp.sum() + 2 * entropy.sum()).backward()
    (want[:, 1].sum() + 2 * want_entropy.sum()).backward()
    for a, b in zip(mine, true, strict=True):
        assert (a.grad.double() - b.grad).norm() <= 1e-5 * b.grad.norm()


def test_log_softmax_gradcheck(backend):
    hidden, weight, ids, ranges, blocked = example(60, 2)
    inputs = hidden.double().requires_grad_(), weight.double().requires_grad_()

    def run(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return linear_log_softmax(h, w, ids[:, :2], tau=1.3, blocked=blocked, ranges=ranges, chunk_rows=3, backend=backend)

    torch.autograd.gradcheck(run, inputs)


def test_a_row_without_any_id_shows_and_harms_no_other(backend):
    """Its log-sum-exp is −inf, its log-probabilities are NaN, and it has no gradient where nothing comes upstream."""
    hidden, weight = torch.randn(3, 8).requires_grad_(), torch.randn(50, 8).requires_grad_()
    ranges = torch.tensor([[[0, 50]], [[4, 4]], [[10, 20]]], dtype=torch.int32)
    logp, lse = linear_log_softmax(hidden, weight, torch.tensor([[3], [3], [12]]), ranges=ranges, return_lse=True, backend=backend)
    assert lse.isfinite().tolist() == [True, False, True]
    assert lse[1] == -INF
    assert logp.isnan().flatten().tolist() == [False, True, False]
    logp[[0, 2]].sum().backward()
    assert hidden.grad.isfinite().all()
    assert hidden.grad.any(1).tolist() == [True, False, True]
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize(("width", "count"), [(97, 2), (1500, 1)])
def test_linear_kl(backend, divergence, reduction, width, count):
    hidden, weight, _, ranges, blocked = example(width, count)
    tensors = hidden, weight, torch.randn(len(hidden), 6), 2 * torch.randn(width, 6) / 6**0.5
    mine = [x.clone().requires_grad_() for x in tensors[:2]]
    true = [x.double().requires_grad_() for x in tensors[:2]]
    settings = {"blocked": blocked, "ranges": ranges, "reduction": reduction, "divergence": divergence, "beta": 0.3}
    loss = linear_kl(*mine, *tensors[2:], tau=1.5, chunk_rows=3, backend=backend, **settings)
    student, teacher = true[0] @ true[1].t() / 1.5, tensors[2].double() @ tensors[3].double().t() / 1.5
    rows = []
    for s, t, own in zip(student, teacher, allowed(ranges, width, blocked), strict=True):
        log_q, log_p = s[own].log_softmax(0), t[own].log_softmax(0)
        p, q = log_p.exp(), log_q.exp()
        log_m = (0.3 * p + 0.7 * q).log()
        rows.append(
            1.5**2
            * {
                "forward_kl": (p * (log_p - log_q)).sum(),
                "reverse_kl": (q * (log_q - log_p)).sum(),
                "jsd": 0.3 * (p * (log_p - log_m)).sum() + 0.7 * (q * (log_q - log_m)).sum(),
            }[divergence]
        )
    want = torch.stack(rows) if reduction == "none" else torch.stack(rows).mean()
    upstream = torch.randn(want.shape)
    loss.backward(upstream)
    want.backward(upstream.double())
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-6)
    for a, b in zip(mine, true, strict=True):
        assert (a.grad.double() - b.grad).norm() <= 1e-5 * b.grad.norm()


def test_linear_kl_of_rows_without_any_id(backend):
    hidden, weight = torch.randn(3, 8).requires_grad_(), torch.randn(50, 8).requires_grad_()
    ranges = torch.tensor([[[0, 50]], [[4, 4]], [[10, 20]]], dtype=torch.int32)
    teacher = torch.randn(3, 8), torch.randn(50, 8)
    rows = linear_kl(hidden, weight, *teacher, ranges=ranges, reduction="none", backend=backend)
    assert rows.isnan().tolist() == [False, True, False]
    left_out = torch.tensor([1.0, 0.0, 1.0])
    linear_kl(hidden, weight, *teacher, ranges=ranges, row_weight=left_out, backend=backend).backward()
    assert hidden.grad.any(1).tolist() == [True, False, True]
    assert weight.grad.isfinite().all()


def test_union_topk_kl(backend):
    """Rows of one id and of none do not count; the others are the loss on their own vocabularies."""
    ranges, blocked, width, k = make_ranges(200, 2), torch.tensor([20, 198], dtype=torch.int32), 200, 4
    ranges[2, 1], ranges[3, 1] = 0, 0
    mine = torch.randn(len(ranges), width).requires_grad_()
    teacher = torch.randn(len(ranges), width)
    true = mine.detach().double().requires_grad_()
    rows = union_topk_kl(mine, teacher, k, tau=2.0, blocked=blocked, ranges=ranges, reduction="none", backend=backend)
    want = []
    for s, t, own in zip(true, teacher.double(), allowed(ranges, width, blocked), strict=True):
        union = sorted({own[i] for x in (s, t) for i in x.detach()[own].topk(min(k, len(own))).indices.tolist()})
        if len(union) < 2:
            want.append(0.0 * s.sum())
            continue
        log_q, log_p = (s[union] / 2).log_softmax(0), (t[union] / 2).log_softmax(0)
        want.append(4 * (log_p.exp() * (log_p - log_q)).sum())
    want = torch.stack(want)
    torch.testing.assert_close(rows.double(), want, rtol=1e-5, atol=1e-6)
    assert (want[2:6] == 0).all()
    rows.sum().backward()
    want.sum().backward()
    torch.testing.assert_close(mine.grad.double(), true.grad, rtol=1e-5, atol=1e-6)
    two = union_topk_kl(
        mine[:8].view(2, 4, width), teacher[:8].view(2, 4, width), k, tau=2.0, blocked=blocked, ranges=ranges[:8].view(2, 4, 2, 2),
        reduction="none", backend=backend,
    )  # fmt: skip
    assert torch.equal(two.flatten(), rows[:8])


def test_the_whole_vocabulary_as_a_range_changes_no_bit(backend):
    """Nor does cutting it up, or int64."""
    hidden, weight = torch.randn(4, 12), torch.randn(2500, 12)
    logits, ids = hidden @ weight.t(), torch.randint(0, 2500, (4, 3))
    whole = torch.tensor([[0, 2500]]).expand(4, 1, 2)
    parts = torch.tensor([[0, 700], [700, 1900], [1900, 2500]], dtype=torch.int32).expand(4, 3, 2)
    teacher = torch.randn(4, 6), torch.randn(2500, 6)
    for call in (
        lambda **k: topk_lse(logits, 5, need_lse=True, gather_ids=ids, **k),
        lambda **k: linear_topk_lse(hidden, weight, 5, need_lse=True, gather_ids=ids, **k),
        lambda **k: (linear_log_softmax(hidden, weight, ids, **k),),
        lambda **k: (row_log_softmax(logits, ids, **k),),
        lambda **k: (linear_kl(hidden, weight, *teacher, **k),),
        lambda **k: (union_topk_kl(logits, logits + 1, 5, **k),),
    ):
        want = call(backend=backend)
        for ranges in (whole, parts):
            assert all(torch.equal(a, b) for a, b in zip(call(ranges=ranges, backend=backend), want, strict=True))


def test_no_rows(backend):
    none = torch.zeros(0, 2, 2, dtype=torch.int32)
    hidden, weight, ids = torch.zeros(0, 4), torch.randn(9, 4), torch.zeros(0, 2, dtype=torch.int32)
    assert topk_lse(torch.zeros(0, 9), 2, ranges=none, need_lse=True, backend=backend).ids.shape == (0, 2)
    assert linear_topk_lse(hidden, weight, 2, ranges=none, backend=backend).ids.shape == (0, 2)
    assert linear_log_softmax(hidden, weight, ids, ranges=none, backend=backend).shape == (0, 2)
    assert linear_kl(hidden, weight, hidden, weight, ranges=none, backend=backend) == 0


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (torch.zeros(3, 2).int(), r"{op}: ranges must have shape \[T=3, R, 2\], got \[3, 2\]"),
        (torch.zeros(2, 1, 2).int(), r"{op}: ranges must have shape \[T=3, R, 2\], got \[2, 1, 2\]"),
        (torch.zeros(3, 1, 3).int(), r"{op}: ranges must have shape \[T=3, R, 2\], got \[3, 1, 3\]"),
        (torch.zeros(3, 1, 2), "{op}: ranges must hold ids as int32 or int64, got torch.float32"),
        (torch.zeros(3, 0, 2).int(), "{op}: ranges must have 1 to 16 ranges a row, got 0; use blocked"),
        (torch.zeros(3, 17, 2).int(), "{op}: ranges must have 1 to 16 ranges a row, got 17; use blocked"),
    ],
)
def test_bad_ranges_are_named(ranges, message):
    hidden, weight, ids = torch.zeros(3, 4), torch.zeros(9, 4), torch.zeros(3, 2, dtype=torch.int32)
    for op, call in {
        "topk_lse": lambda: topk_lse(torch.zeros(3, 9), 2, ranges=ranges),
        "linear_topk_lse": lambda: linear_topk_lse(hidden, weight, 2, ranges=ranges),
        "linear_log_softmax": lambda: linear_log_softmax(hidden, weight, ids, ranges=ranges),
        "row_log_softmax": lambda: row_log_softmax(torch.zeros(3, 9), ids, ranges=ranges),
        "linear_logprob": lambda: linear_logprob(hidden, weight, ids[:, 0], ranges=ranges),
        "linear_kl": lambda: linear_kl(hidden, weight, hidden, weight, ranges=ranges),
    }.items():
        with pytest.raises(ValueError, match=message.format(op=op)):
            call()


def test_bad_ranges_of_the_drop_in_loss_are_named():
    x = torch.zeros(2, 3, 9)
    for ranges, got in ((torch.zeros(3, 1, 2).int(), r"\[3, 1, 2\]"), (torch.zeros(2, 3, 2).int(), r"\[2, 3, 2\]"), (5, "int")):
        said = rf"union_topk_kl: ranges must be a torch.Tensor of shape \[..., R, 2\]( with the logits.* axes)?, got {got}"
        with pytest.raises(ValueError, match=said):
            union_topk_kl(x, x, 2, ranges=ranges)
