"""The teacher's two passes, prompts and then answers, against one pass over both."""

import gc
import weakref
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from distill_batches import ALLOWED, make_batch

from arkfast.distill import opd_step
from arkfast.distill.sequence import at_predicting_positions
from arkfast.distill.teachers.arkasr import ArkasrTeacher
from arkfast.engine import Engine
from arkfast.kernels import linear_topk_lse
from arkfast.records import Rollout, TeacherScores
from arkfast.testing import perturb, tiny_model

FRAMES = (37, 122, 8, 61)
ONE_EACH = (5, 1, 9, 3)
THREE_EACH = (5, 1, 9, 1, 1, 1, 3, 2, 12, 4, 4, 1)
"""Tokens of each rollout; 1 is an end token alone."""
K = 8


def make_teacher(**overrides):
    return ArkasrTeacher(perturb(tiny_model(seed=2, **overrides)), allowed=ALLOWED, top_k=K)


def make_rollout(lens, owner):
    """Random tokens in rows of ``lens``, the end token last in each, and random top-k ids, some of them missing."""
    generator = torch.Generator().manual_seed(sum(lens))
    tokens = torch.randint(0, 90, (len(lens), max(lens)), generator=generator)
    tokens[torch.arange(len(lens)), torch.tensor(lens) - 1] = 95
    topk_ids = torch.stack([torch.randperm(90, generator=generator)[:K] for _ in range(sum(lens))]).int()
    topk_ids[::3, -1] = -1
    return Rollout(
        tokens=tokens, lens=torch.tensor(lens), stopped=torch.ones(len(lens), dtype=torch.bool), owner=torch.tensor(owner),
        topk_ids=topk_ids, total=sum(lens),
    )  # fmt: skip


def rollouts(each):
    n = len(each) // len(FRAMES)
    return make_rollout(each, [i for i in range(len(FRAMES)) for _ in range(n)])


@torch.no_grad()
def one_pass(teacher, batch, rollout):
    """The scores as the definition has them: each prompt and its tokens in one row."""
    best = at_predicting_positions(
        teacher.model,
        batch,
        teacher.model.get_audio_features(batch.mel, batch.mel_lens),
        rollout,
        lambda hidden, weight: linear_topk_lse(hidden, weight, K, blocked=ALLOWED.blocked(weight.shape[0]), gather_ids=rollout.topk_ids),
    )
    unseen = best.gathered.masked_fill(rollout.topk_ids < 0, float("-inf"))
    return TeacherScores(ids=best.ids, scores=best.values, student_scores=unseen, valid=torch.isfinite(best.values[:, 0]))


def make_batch_of_four():
    return make_batch(FRAMES, targets=((3, 95),) * len(FRAMES))


CASES = {
    "one rollout": rollouts(ONE_EACH),
    "three rollouts": rollouts(THREE_EACH),
    "rollouts in no order": make_rollout((2, 7, 1, 4, 6), (3, 0, 2, 0, 1)),
    "end tokens alone": rollouts((1, 1, 1, 1)),
    "a prompt without rollouts": make_rollout((4, 6), (3, 1)),
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", CASES)
def test_scores_equal_those_of_one_pass(case, attention):
    teacher, batch, rollout = make_teacher(attn_implementation=attention), make_batch_of_four(), CASES[case]
    want = one_pass(teacher, batch, rollout)
    for begun in (teacher.begin(batch), None):
        got = teacher.score(batch, rollout, begun)
        assert torch.equal(got.ids, want.ids)
        assert torch.equal(got.valid, want.valid)
        for name in ("scores", "student_scores"):
            torch.testing.assert_close(getattr(got, name), getattr(want, name), atol=1e-5, rtol=1e-6)
    assert len(set(want.ids[:, 0].tolist())) > len(want.ids) // 3, "too few distinct ids for the comparison to mean anything"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_stands_past_an_end_is_not_seen(attention):
    """Of a prompt, in the keys and values that are kept, and of a rollout, in its tokens."""
    teacher, batch, rollout = make_teacher(attn_implementation=attention), make_batch_of_four(), CASES["three rollouts"]
    begun = teacher.begin(batch)
    want = teacher.score(batch, rollout, begun)
    past = torch.arange(begun.cache.keys[0].shape[2]) >= begun.lens[:, None]
    assert past.any()
    for kept in (*begun.cache.keys, *begun.cache.values):
        kept.transpose(1, 2)[past] = 1e4
    beyond = torch.arange(rollout.tokens.shape[1]) >= rollout.lens[:, None]
    got = teacher.score(batch, replace(rollout, tokens=rollout.tokens.masked_fill(beyond, 17)), begun)
    assert torch.equal(got.scores, want.scores)
    assert torch.equal(got.student_scores, want.student_scores)


def test_bf16_is_as_near_to_fp32_as_one_pass_is():
    batch, rollout = make_batch_of_four(), CASES["three rollouts"]
    wide = one_pass(make_teacher(), batch, rollout).student_scores
    narrow = ArkasrTeacher(perturb(tiny_model(seed=2)).bfloat16(), allowed=ALLOWED, top_k=K)
    got, before = narrow.score(batch, rollout, narrow.begin(batch)), one_pass(narrow, batch, rollout)
    assert got.scores.dtype == got.student_scores.dtype == torch.float32
    assert got.valid.all()
    seen = torch.isfinite(wide)
    assert torch.equal(torch.isfinite(got.student_scores), seen)
    ours, theirs = ((scores.student_scores - wide)[seen].abs().mean() for scores in (got, before))
    assert 0 < ours < 1.2 * theirs


@pytest.mark.parametrize("n", [1, 3])
def test_a_prompt_goes_through_the_teacher_once_whatever_the_rollouts(n):
    student, teacher, batch = tiny_model(seed=1), make_teacher(), make_batch_of_four()
    engine, seen, heard = Engine(student, allowed=ALLOWED, topk=K), [], []
    teacher.model.model.layers[0].register_forward_pre_hook(lambda _layer, inputs: seen.append(tuple(inputs[0].shape[:2])))
    teacher.model.audio_encoder.register_forward_pre_hook(lambda _encoder, inputs: heard.append(len(inputs[0])))
    opd_step(student, engine, teacher, batch, tau=1.0, n=n, temperature=1.0, seed=0, max_new_tokens=6)
    width = batch.input_ids.shape[1]
    assert seen == [(4, width), (4 * n, 5)], "the prompts, then the tokens of each rollout but its last"
    assert heard == [4]


def test_keys_and_values_are_kept_once_and_let_go_before_the_students_pass(monkeypatch):
    student, teacher, batch = tiny_model(seed=1), make_teacher(), make_batch_of_four()
    kept, gone = [], []
    begin = teacher.begin

    def watched(batch):
        begun = begin(batch)
        assert all(len(keys) == batch.size for keys in (*begun.cache.keys, *begun.cache.values))
        assert not any(tensor.requires_grad for tensor in (*begun.cache.keys, *begun.cache.values, begun.last))
        kept.extend(weakref.ref(tensor) for tensor in (*begun.cache.keys, *begun.cache.values))
        return begun

    def phase(name):
        if name == "student_score":
            gc.collect()
            gone.extend(ref() is None for ref in kept)
        return nullcontext()

    monkeypatch.setattr(teacher, "begin", watched)
    opd_step(student, Engine(student, allowed=ALLOWED, topk=K), teacher, batch, tau=1.0, n=2, max_new_tokens=4, phase=phase)
    assert len(kept) == 4
    assert gone == [True] * len(kept)


def test_an_attention_without_masks_of_rows_is_refused():
    model = tiny_model(seed=2)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"attention is 'flash_attention_2', .* attn_implementation='sdpa' or 'eager'"):
        ArkasrTeacher(model, allowed=ALLOWED, top_k=K)
