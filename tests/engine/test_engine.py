"""Decoding: equal to Transformers' generate, independent of the batch, and what it keeps beside the tokens."""

import pytest
import torch

from arkfast.data import Prompt, audio_token_count
from arkfast.data.prompt import pad_right
from arkfast.engine import Engine
from arkfast.records import AllowedTokens, Batch
from arkfast.testing import tiny_model

FRAMES = [37, 96, 8, 61, 122]
ALLOWED = AllowedTokens(ranges=((0, 90),), stop_ids=(95,))
PROMPT = Prompt(prefix=(91, 92), audio_id=90, suffix=(93, 5, 6, 94))


def make_batch(frames=FRAMES, first=0):
    mel = torch.zeros(len(frames), 128, max(frames))
    for i, n in enumerate(frames):
        mel[i, :, :n] = torch.randn(128, n, generator=torch.Generator().manual_seed(100 + first + i))
    ids, lens = pad_right([PROMPT.ids(n) for n in frames])
    names = tuple(f"u{first + i}" for i in range(len(frames)))
    keys = torch.arange(first, first + len(frames)) * 7919
    return Batch(ids=names, keys=keys, mel=mel, mel_lens=torch.tensor(frames), input_ids=ids, prompt_lens=lens)


@pytest.fixture(scope="module")
def model():
    return tiny_model(seed=1)


def rows(rollout):
    return [row[:n].tolist() for row, n in zip(rollout.tokens, rollout.lens, strict=True)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_equals_generate(attention):
    model = tiny_model(seed=1)
    model.set_attn_implementation(attention)
    batch = make_batch()
    got = rows(Engine(model, allowed=ALLOWED).rollout(batch, max_new_tokens=20))
    banned = [[i] for i in range(97) if i not in ALLOWED]
    for i, n in enumerate(FRAMES):
        ids = batch.input_ids[i : i + 1, : batch.prompt_lens[i]]
        assert (ids == 90).sum() == audio_token_count(n)
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), audios=batch.mel[i : i + 1, :, :n], do_sample=False, max_new_tokens=20,
            eos_token_id=95, pad_token_id=96, bad_words_ids=banned,
        )  # fmt: skip
        assert out[0, ids.shape[1] :].tolist() == got[i]
    assert len({token for row in got for token in row}) >= 10, "too few distinct tokens for the comparison to mean anything"


def test_a_row_does_not_depend_on_its_batch(model):
    engine = Engine(model, allowed=ALLOWED, topk=4, logprobs=True)
    together = engine.rollout(make_batch(), max_new_tokens=16)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), together.lens.cumsum(0)])
    for i, n in enumerate(FRAMES):
        alone = engine.rollout(make_batch([n], first=i), max_new_tokens=16)
        assert rows(alone)[0] == rows(together)[i]
        assert torch.equal(alone.topk_ids, together.topk_ids[starts[i] : starts[i + 1]])
        torch.testing.assert_close(alone.logprob, together.logprob[starts[i] : starts[i + 1]], atol=1e-4, rtol=0)


def test_what_is_kept(model):
    rollout = Engine(model, allowed=ALLOWED, topk=4, logprobs=True).rollout(make_batch(), max_new_tokens=12)
    total = int(rollout.lens.sum())
    assert rollout.topk_ids.shape == (total, 4)
    assert rollout.topk_ids.dtype == torch.int32
    row, place = rollout.packed_index()
    assert torch.equal(rollout.topk_ids[:, 0].long(), rollout.tokens[row, place]), "greedy takes the best id"
    assert (rollout.logprob <= 0).all()
    for tokens, n, stopped in zip(rollout.tokens, rollout.lens, rollout.stopped, strict=True):
        assert stopped == (tokens[n - 1] == 95)
        assert 95 not in tokens[: n - 1]
        assert all(int(t) in ALLOWED for t in tokens[:n])
        assert (tokens[n:] == 0).all()
    assert (rollout.lens[~rollout.stopped] == 12).all()


def test_logprob_is_that_of_the_allowed_distribution(model):
    batch = make_batch([40])
    rollout = Engine(model, allowed=ALLOWED, logprobs=True).rollout(batch, max_new_tokens=6)
    ids = torch.cat([batch.input_ids, rollout.tokens], 1)
    logits = model(input_ids=ids, audios=batch.mel, audio_lens=batch.mel_lens, attention_mask=torch.ones_like(ids)).logits[0].double()
    logits[:, [i for i in range(97) if i not in ALLOWED]] = float("-inf")
    start = int(batch.prompt_lens[0]) - 1
    want = logits.log_softmax(-1)[start : start + len(rollout.tokens[0])].gather(1, rollout.tokens[0][:, None])[:, 0]
    torch.testing.assert_close(rollout.logprob.double(), want[: int(rollout.lens[0])], atol=1e-4, rtol=0)


def test_sampling_is_keyed_by_utterance_rollout_and_seed(model):
    engine = Engine(model, allowed=ALLOWED)
    options = {"max_new_tokens": 10, "temperature": 1.0}
    together = engine.rollout(make_batch(), n=3, seed=5, **options)
    assert together.owner.tolist() == [i for i in range(5) for _ in range(3)]
    for i, n in enumerate(FRAMES):
        alone = engine.rollout(make_batch([n], first=i), n=3, seed=5, **options)
        assert rows(alone) == rows(together)[3 * i : 3 * i + 3]
        fewer = engine.rollout(make_batch([n], first=i), n=1, seed=5, **options)
        assert rows(fewer)[0] == rows(together)[3 * i]
    assert rows(engine.rollout(make_batch(), n=3, seed=6, **options)) != rows(together)
    assert len({tuple(row) for row in rows(together)}) > 10


def test_draws_follow_the_distribution():
    """Gumbel-max noise over many keys: frequencies within four standard errors of softmax, and restricted draws stay inside."""
    from arkfast.engine.sampling import gumbel_noise, restrict

    scores = torch.tensor([2.0, 1.0, 0.0, -1.0, float("-inf")])
    n = 20_000
    noise = gumbel_noise(torch.arange(n) * 104729, torch.zeros(n, dtype=torch.long), 3, 5, seed=1)
    counts = torch.bincount((scores + noise).argmax(-1), minlength=5).double() / n
    p = scores.softmax(-1).double()
    assert ((counts - p).abs() <= 4 * (p * (1 - p) / n).sqrt()).all()
    assert counts[4] == 0
    limited = restrict(scores[None], top_k=2)
    assert torch.isfinite(limited[0]).tolist() == [True, True, False, False, False]
    nucleus = restrict(scores[None], top_p=0.7)
    assert torch.isfinite(nucleus[0]).tolist() == [True, True, False, False, False]  # 0.64 alone is short of 0.7


def test_a_row_whose_scores_are_not_numbers_is_marked_and_harms_no_other(model):
    batch, engine = make_batch(), Engine(model, allowed=ALLOWED, topk=4)
    clean = engine.rollout(batch, max_new_tokens=10)
    assert not clean.failed.any()
    batch.mel[1, :, : FRAMES[1]] = float("nan")
    rollout = engine.rollout(batch, max_new_tokens=10)
    assert rollout.failed.tolist() == [False, True, False, False, False]
    assert [row for i, row in enumerate(rows(rollout)) if i != 1] == [row for i, row in enumerate(rows(clean)) if i != 1]
