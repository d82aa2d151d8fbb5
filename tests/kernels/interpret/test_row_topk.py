"""The row kernels where groups, supergroups, parts and 16-bit keys could go wrong. The contract tests run on them too."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import FLAG_INF, FLAG_NAN, FLAG_SHORT, TopK, topk_lse
from arkfast.kernels.common.backend import UnfitError
from arkfast.kernels.row_topk.launcher import BLOCK, BLOCKS, GROUP, SUPER, blocked_space, blocks_of

INF = float("inf")
PART = BLOCK * BLOCKS


def check(logits: torch.Tensor, k: int, **options: torch.Tensor) -> TopK:
    """topk_lse in Triton, its ids and values compared bit for bit with a stable sort of the whole row."""
    got = topk_lse(logits, k, need_lse=True, backend="triton", **options)
    x = logits.double() + 0.0
    x = torch.where(x.isnan(), -INF, x)
    if "blocked" in options:
        x = x.index_fill(1, options["blocked"].long(), -INF)
    values, ids = (part[:, :k] for part in torch.sort(x, dim=1, descending=True, stable=True))
    assert torch.equal(got.ids.long(), torch.where(values == -INF, -1, ids))
    assert torch.equal(got.values.double(), values)
    assert_lse(got.lse, x)
    return got


def assert_lse(lse: torch.Tensor | None, x: torch.Tensor) -> None:
    """Within 2e-6 · (1 + max |x|) of float64, and exact where it is infinite."""
    assert lse is not None
    exact = x.logsumexp(1)
    finite = exact.isfinite()
    assert torch.equal(lse[~finite].double(), exact[~finite])
    magnitude = torch.where(x.isinf(), 0.0, x.abs()).amax(1)
    assert ((lse.double() - exact).abs() <= 2e-6 * (1 + magnitude))[finite].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [1, 2, 33, 64])
def test_every_k_and_dtype(dtype, k):
    """A prime width in one part, and one column more than one part: the last group has a single column."""
    check((torch.randn(1, 8191) * 3).to(dtype), k)
    check((torch.randn(1, PART + 1) * 3).to(dtype), k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_winners_in_the_worst_places(dtype):
    """Where a wrong selection of groups loses a winner: all winners in one group; one in each of many supergroups; the best in the last
    column; the lower of two equal values in the group that comes earlier; winners that tie with the first column of everything."""
    width = PART + 3 * BLOCK
    logits = torch.randn(5, width) - 20
    logits[0, 5 * GROUP : 6 * GROUP] = torch.arange(GROUP).float()
    stride = GROUP * SUPER
    logits[1, stride - 1 :: stride] = torch.arange(len(logits[1, stride - 1 :: stride])).float()
    logits[2, -1] = 7.0
    logits[3, [GROUP * 40 + 31, GROUP * 41]] = 7.0
    logits[4] = 1.0
    check(logits.to(dtype), 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_special_rows(dtype):
    """All −inf; all NaN; NaN and +inf among numbers; the largest numbers of the type; few finite ones, fewer than k."""
    width = 2 * BLOCK + 17
    big = torch.finfo(dtype).max
    logits = torch.randn(6, width)
    logits[0] = -INF
    logits[1] = float("nan")
    logits[2, ::7] = float("nan")
    logits[3, 9], logits[3, BLOCK + 1] = INF, INF
    logits[4] = torch.where(torch.rand(width) < 0.5, big, -big)
    logits[5] = torch.where(torch.arange(width) % 900 == 7, logits[5], -INF)
    got = check(logits.to(dtype), 32)
    assert got.flags.tolist() == [FLAG_SHORT, FLAG_NAN | FLAG_SHORT, FLAG_NAN, FLAG_INF, 0, FLAG_SHORT]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groups_and_supergroups_of_nothing_but_nan(dtype):
    """Their maxima are NaN and must lose to every number: one group; one supergroup, the first block; all but the last column."""
    width = 2 * BLOCK
    logits = torch.randn(4, width)
    logits[0, 7 * GROUP : 8 * GROUP] = float("nan")
    logits[1, GROUP * SUPER : 2 * GROUP * SUPER] = float("nan")
    logits[2, :BLOCK] = float("nan")
    logits[3, :-1] = float("nan")
    got = check(logits.to(dtype), 32)
    assert got.flags.tolist() == [FLAG_NAN, FLAG_NAN, FLAG_NAN, FLAG_NAN | FLAG_SHORT]


def test_lse_of_huge_and_tiny_values():
    """1e30 overflows the product with log2 e; −1e30 first makes an infinite factor for an empty sum."""
    logits = torch.randn(3, PART + 5)
    logits[0] *= 1e30
    logits[1] = -1e30
    logits[1, -1] = 1e30
    logits[2, :PART] = -INF
    check(logits, 4)


def test_lse_is_as_good_as_torchs():
    """Three ways: the error against float64 is no more than that of torch.logsumexp in float32, plus one rounding of the result."""
    logits = torch.randn(2, 3 * BLOCK) * 3
    exact = logits.double().logsumexp(1)
    ours = (topk_lse(logits, 1, need_lse=True, backend="triton").lse - exact).abs()
    theirs = (logits.logsumexp(1) - exact).abs()
    assert (ours <= theirs + exact.abs() * 2.0**-23).all()


def test_blocked_ids_are_bits():
    """The first and the last bit of a word (the last is its sign), the same id twice, whole groups, a part's last column, and a NaN."""
    width = PART + 100
    logits = torch.randn(2, width).bfloat16()
    blocked = torch.cat([torch.tensor([0, 31, 31, 32, 63, PART - 1, PART, width - 1]), torch.arange(256, 320)]).int()
    logits[:, blocked.long()] = 50.0
    logits[:, 31] = float("nan")
    logits[:, 63] = INF
    got = check(logits, 40, blocked=blocked)
    assert not got.flags.any()
    space = blocked_space(width, blocked, logits.device)
    assert space.words is not None
    bits = (space.words[:, None] >> torch.arange(32)) & 1
    assert bits.flatten().nonzero().flatten().tolist() == sorted(set(blocked.tolist()))
    assert space.blocks is not None
    assert space.blocks.tolist() == [1, 0, 0, 1, 1, 0, 0, 0]


def test_gathers_of_more_than_one_program():
    """65 columns; int64; ids outside; −0 comes back as +0."""
    logits = torch.randn(2, 300)
    logits[1, 5] = -0.0
    ids = torch.randint(0, 300, (2, 65))
    ids[1, :4] = torch.tensor([5, -1, 300, 1 << 40])
    got = topk_lse(logits, 1, gather_ids=ids, backend="triton").gathered
    want = topk_lse(logits, 1, gather_ids=ids, backend="torch").gathered
    assert torch.equal(got, want)
    assert not got[1, 0].signbit()


def test_rows_far_apart_and_columns_apart():
    wide = torch.randn(3, 1000)
    for logits in (wide[:, 7:607], wide[:, ::2], wide[::2, :600], wide[:1].expand(3, -1)):
        check(logits, 8)


@pytest.mark.parametrize("width", [151936, 163958])
def test_real_vocabularies(width):
    """bf16 logits tie at rank 32 as a rule; what an ASR task may not say is blocked."""
    blocked = torch.arange(151643, width, dtype=torch.int32)
    check((torch.randn(2, width) * 3).bfloat16(), 32, blocked=blocked[blocked != 151645])


def test_a_row_does_not_depend_on_the_others():
    logits = torch.randn(5, PART + 9)
    whole = topk_lse(logits, 8, need_lse=True, backend="triton")
    for part in (slice(0, 0), slice(0, 1), slice(2, 5)):
        got = topk_lse(logits[part], 8, need_lse=True, backend="triton")
        for mine, true in zip((got.values, got.ids, got.lse, got.flags), (whole.values, whole.ids, whole.lse, whole.flags), strict=True):
            assert torch.equal(mine, true[part])


def test_parts_depend_on_the_width_alone():
    assert [blocks_of(width) for width in (1, BLOCK, BLOCK + 1, PART, PART + 1)] == [1, 1, 2, 4, 8]


@pytest.mark.parametrize(
    ("logits", "k", "reason"),
    [
        (torch.zeros(2, 9).double(), 2, "does not take float64 logits"),
        (torch.zeros(2, 99), 65, "does not take k above 64"),
        (torch.zeros(1, (1 << 21) + 1), 2, "does not take rows wider than 2097152"),
    ],
)
def test_what_the_kernels_do_not_take_is_said(logits, k, reason):
    with pytest.raises(UnfitError, match=f"topk_lse: .* {reason}; use backend='auto'"):
        topk_lse(logits, k, backend="triton")
