"""The merge's kernels at shapes that hurt, in Triton's interpreter; the op's contract is tested in the folder above."""

from __future__ import annotations

import pytest
import torch

from arkfast.kernels import audio_embed_merge

AUDIO = 7


def both(ids, table, audio, lens, *, grads=True):
    """(result, table gradient, audio gradient) of the kernels and of the torch reference, with whole numbers upstream."""
    results = []
    for backend in ("triton", "torch"):
        t, a = table.detach().clone().requires_grad_(grads), audio.detach().clone().requires_grad_(grads)
        out = audio_embed_merge(ids, t, a, lens, AUDIO, backend=backend)
        if grads:
            torch.manual_seed(1)
            out.backward(torch.randint(-8, 9, out.shape).to(out.dtype))
        results.append((out.detach(), t.grad, a.grad))
    return results


def assert_same(results) -> None:
    for mine, theirs in zip(*results, strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or (mine.dtype == theirs.dtype and torch.equal(mine, theirs))


# Less than a block, a block, more than a block, and more than the widest block of the table.
@pytest.mark.parametrize("features", [1, 100, 128, 1000, 2500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_widths(features, dtype):
    ids = torch.randint(8, 30, (2, 6))
    ids[0, 1:4], ids[1, 5] = AUDIO, AUDIO
    assert_same(both(ids, torch.randn(30, features).to(dtype), torch.randn(2, 3, features).to(dtype), torch.tensor([3, 1])))


def test_prompts_longer_than_a_step_of_the_slot_kernel():
    """Runs of placeholders on both sides of its boundary at 1024, and more audio rows than one step of the inverse map."""
    ids = torch.randint(8, 30, (2, 1300), dtype=torch.int32)
    ids[0, 150:1290] = AUDIO
    ids[1, ::2] = AUDIO
    ids[1, 1023], ids[1, 1025] = AUDIO, -1
    lens = torch.tensor([1040, 600], dtype=torch.int32)
    assert_same(both(ids, torch.randn(30, 3), torch.randn(2, 1041, 3), lens))


def test_rows_that_are_views():
    """The encoder's output may be a slice of a longer tensor, the table a part of a wider one."""
    ids = torch.tensor([[9, AUDIO, AUDIO], [AUDIO, 9, 8]])
    table, audio = torch.randn(30, 12)[:, 4:], torch.randn(2, 5, 16)[:, 1:4, ::1][..., 8:]
    assert not audio.is_contiguous()
    want = audio_embed_merge(ids, table, audio, torch.tensor([2, 1]), AUDIO, backend="torch")
    assert torch.equal(audio_embed_merge(ids, table, audio, torch.tensor([2, 1]), AUDIO, backend="triton"), want)
    with pytest.raises(ValueError, match="does not take rows whose features are not neighbours in memory"):
        audio_embed_merge(ids, table.t().contiguous().t(), audio, torch.tensor([2, 1]), AUDIO, backend="triton")


def test_audio_of_another_dtype_than_the_table():
    ids = torch.tensor([[9, AUDIO, AUDIO]])
    table, audio = torch.randn(30, 16).bfloat16(), torch.randn(1, 2, 16)
    (out, _, grad), (want, _, want_grad) = both(ids, table, audio, torch.tensor([2]))
    assert torch.equal(out, want)
    assert grad.dtype == torch.float32
    assert torch.equal(grad, want_grad)


def test_an_expanded_upstream_gradient():
    """sum() sends back one number for all elements, a tensor of stride 0."""
    ids, table = torch.tensor([[9, AUDIO, 9]]), torch.randn(30, 5, requires_grad=True)
    audio = torch.randn(1, 2, 5, requires_grad=True)
    audio_embed_merge(ids, table, audio, torch.tensor([1]), AUDIO, backend="triton").sum().backward()
    assert table.grad[9].eq(2).all()
    assert table.grad.sum() == 10
    assert audio.grad[0].tolist() == [[1] * 5, [0] * 5]


def test_an_id_past_the_table_shows():
    out = audio_embed_merge(
        torch.tensor([[30, 2, -1]]), torch.randn(30, 4), torch.randn(1, 1, 4), torch.tensor([0]), AUDIO, backend="triton"
    )
    assert out[0].isnan().all(1).tolist() == [True, False, False]


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_mismatches_are_told_without_a_wait(backend):
    """More placeholders than rows, fewer, as many, a length beyond the tensor, none of either."""
    ids = torch.full((5, 3), 9)
    ids[0, :2], ids[1, 0], ids[2], ids[3] = AUDIO, AUDIO, AUDIO, AUDIO
    flags = torch.ones(5, dtype=torch.bool)
    lens = torch.tensor([1, 2, 2, 3, 0])
    lens[2] = 3
    audio = torch.randn(5, 3, 4)
    lens[3], available = 3, audio[:, :2]
    audio_embed_merge(ids, torch.randn(30, 4), audio, lens, AUDIO, mismatch=flags, backend=backend)
    assert flags.tolist() == [True, True, False, False, False]
    audio_embed_merge(ids, torch.randn(30, 4), available, lens, AUDIO, mismatch=flags, backend=backend)
    assert flags.tolist() == [True, True, True, True, False]
    with pytest.raises(ValueError, match=r"mismatch must be a tensor of torch.bool to write to, got torch.int64"):
        audio_embed_merge(ids, torch.randn(30, 4), audio, lens, AUDIO, mismatch=lens, backend=backend)


def test_an_id_past_the_table_gives_the_table_no_gradient():
    memory = torch.zeros(32, 4)
    table = torch.randn(30, 4, requires_grad=True)
    ids = torch.tensor([[1, 30, AUDIO, 31, 2]])
    out = audio_embed_merge(ids, table, torch.randn(1, 2, 4), torch.tensor([1]), AUDIO, backend="triton")
    assert out[0].isnan().all(1).tolist() == [False, True, False, True, False]
    zeros, torch_zeros = torch.zeros, lambda *size, **settings: memory[:30] if size[:1] == (30,) else zeros(*size, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "zeros", torch_zeros)
        (grad,) = torch.autograd.grad(out, table, torch.ones_like(out))
    assert grad.any(1).nonzero().flatten().tolist() == [1, 2]
    assert not memory[30:].any()
