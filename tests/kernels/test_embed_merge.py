"""Merging audio rows into prompts against the embedding lookup and masked_scatter that models use."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from arkfast.kernels import audio_embed_merge

AUDIO = 7


def example() -> tuple[torch.Tensor, ...]:
    """Four prompts: all rows used, some, none, and placeholders that do not stand together."""
    audio_lens = torch.tensor([6, 3, 0, 2])
    input_ids = torch.randint(8, 30, (4, 12))
    input_ids[0, 3:9] = AUDIO
    input_ids[1, 2:5] = AUDIO
    input_ids[3, [1, 10]] = AUDIO
    return input_ids, torch.randn(30, 5), torch.randn(4, 6, 5), audio_lens


def scattered(input_ids: torch.Tensor, table: torch.Tensor, audio: torch.Tensor, audio_lens: torch.Tensor) -> torch.Tensor:
    rows = torch.cat([clip[:n] for clip, n in zip(audio, audio_lens.tolist(), strict=True)])
    return F.embedding(input_ids, table).masked_scatter((input_ids == AUDIO)[..., None], rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True), (False, False)])
def test_equals_masked_scatter_with_each_subset_of_gradients(backend, dtype, wanted):
    input_ids, table, audio, audio_lens = example()
    upstream = torch.randint(-8, 9, (4, 12, 5)).to(dtype)  # whole numbers: sums of table gradients are exact in bf16 too
    results = []
    for run in (audio_embed_merge, scattered):
        t, a = (x.to(dtype).requires_grad_(w) for x, w in zip((table, audio), wanted, strict=True))
        extra = {"audio_id": AUDIO, "backend": backend} if run is audio_embed_merge else {}
        out = run(input_ids, t, a, audio_lens, **extra)
        assert out.requires_grad == any(wanted)
        if any(wanted):
            out.backward(upstream)
        results.append((out.detach(), t.grad, a.grad))
    (out, table_grad, audio_grad), (want, want_table, want_audio) = results
    assert torch.equal(out, want)
    assert (table_grad is None) == (not wanted[0])
    assert (audio_grad is None) == (not wanted[1])
    if wanted[0]:
        # masked_scatter's lookup of placeholders leaves zeros there too.
        assert torch.equal(table_grad, want_table)
        assert not table_grad[AUDIO].any()
    if wanted[1]:
        assert torch.equal(audio_grad, want_audio)


def test_gradcheck(backend):
    input_ids, table, audio, audio_lens = example()
    inputs = table.double().requires_grad_(), audio.double().requires_grad_()
    torch.autograd.gradcheck(lambda t, a: audio_embed_merge(input_ids, t, a, audio_lens, AUDIO, backend=backend), inputs)


def test_more_placeholders_than_rows_are_zeros_and_fewer_truncate(backend):
    _, table, audio, _ = example()
    input_ids = torch.tensor([[AUDIO, 9, AUDIO, AUDIO], [AUDIO, 9, 9, 9]])
    audio = audio[:2].clone().requires_grad_()
    out = audio_embed_merge(input_ids, table, audio, torch.tensor([2, 3]), AUDIO, backend=backend)
    assert torch.equal(out[0, [0, 2]], audio[0, :2])
    assert not out[0, 3].any()
    assert torch.equal(out[1], torch.stack([audio[1, 0], *table[[9, 9, 9]]]))
    out.sum().backward()
    assert audio.grad.any(2).tolist() == [[True, True, False, False, False, False], [True, False, False, False, False, False]]


def test_rows_past_a_clips_length_are_never_read(backend):
    input_ids, table, audio, audio_lens = example()
    audio_lens[0] = 4  # the prompt's last two placeholders point past it
    want = audio_embed_merge(input_ids, table, audio, audio_lens, AUDIO, backend=backend)
    past = torch.arange(6)[None] >= audio_lens[:, None]
    poisoned = audio.masked_fill(past[..., None], float("nan")).requires_grad_()
    got = audio_embed_merge(input_ids, table, poisoned, audio_lens, AUDIO, backend=backend)
    got.sum().backward()
    assert torch.equal(got, want)
    assert not poisoned.grad[past].any()
    assert poisoned.grad[~past].eq(1).all()


@pytest.mark.parametrize("validate", [True, False])
def test_lengths_beyond_the_tensor(backend, validate):
    """A length that the tensor does not hold is an error when looked at, and zeros otherwise; never another clip's rows."""
    table, audio = torch.randn(30, 5), torch.randn(2, 2, 5)
    input_ids = torch.full((2, 3), AUDIO)
    if validate:
        with pytest.raises(ValueError, match=r"row 0 has 3 placeholders for 3 audio rows \(audio holds 2\)"):
            audio_embed_merge(input_ids, table, audio, torch.tensor([3, 3]), AUDIO, validate=True, backend=backend)
    else:
        out = audio_embed_merge(input_ids, table, audio, torch.tensor([3, 3]), AUDIO, backend=backend)
        assert torch.equal(out[:, :2], audio)
        assert not out[:, 2].any()


def test_validate_names_the_row(backend):
    input_ids, table, audio, audio_lens = example()
    assert audio_embed_merge(input_ids, table, audio, audio_lens, AUDIO, validate=True, backend=backend).shape == (4, 12, 5)
    audio_lens[1] = 4
    with pytest.raises(ValueError, match=r"row 1 has 3 placeholders for 4 audio rows"):
        audio_embed_merge(input_ids, table, audio, audio_lens, AUDIO, validate=True, backend=backend)


@pytest.mark.parametrize(("clips", "rows", "prompt"), list(itertools.product([0, 2], [0, 3], [0, 4])))
def test_empty_shapes(backend, clips, rows, prompt):
    table, audio = torch.randn(30, 5, requires_grad=True), torch.randn(clips, rows, 5, requires_grad=True)
    input_ids = torch.full((clips, prompt), AUDIO)
    lens = torch.full((clips,), rows)
    out = audio_embed_merge(input_ids, table, audio, lens, AUDIO, backend=backend)
    assert out.shape == (clips, prompt, 5)
    assert torch.equal(out[:, : min(rows, prompt)], audio[:, : min(rows, prompt)])
    assert not out[:, rows:].any()
    out.sum().backward()
    assert not table.grad.any()


def test_placeholder_outside_the_table_and_negative_padding(backend):
    """A placeholder id needs no table row; another negative id is padding."""
    table = torch.randn(10, 5, requires_grad=True)
    input_ids = torch.tensor([[3, 5000, -1]], dtype=torch.int32)
    out = audio_embed_merge(input_ids, table, torch.ones(1, 1, 5), torch.tensor([1]), 5000, backend=backend)
    assert torch.equal(out[0], torch.stack([table[3], torch.ones(5), torch.zeros(5)]))
    out.sum().backward()
    assert table.grad.any(1).nonzero().flatten().tolist() == [3]


def test_the_tables_dtype_is_the_results(backend):
    input_ids, table, audio, audio_lens = example()
    out = audio_embed_merge(input_ids, table.bfloat16(), audio, audio_lens, AUDIO, backend=backend)
    assert torch.equal(out, scattered(input_ids, table.bfloat16(), audio.bfloat16(), audio_lens))
