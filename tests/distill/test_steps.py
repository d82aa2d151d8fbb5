"""A step of each stage against dense autograd, and the properties of the loss through the whole model."""

from contextlib import nullcontext

import pytest
import torch
from distill_batches import ALLOWED, make_batch

from arkfast.distill import CTCHead, idle_step, metric_names, opd_step, sft_step, td_step
from arkfast.distill.losses import opd_loss
from arkfast.distill.teachers.arkasr import ArkasrTeacher, check_same_vocabulary
from arkfast.engine import Engine
from arkfast.records import Batch, InputError, Rollout
from arkfast.testing import tiny_model


def select(batch, rows):
    part = {}
    for name in ("keys", "mel", "mel_lens", "input_ids", "prompt_lens", "target_ids", "target_lens"):
        part[name] = getattr(batch, name)[rows]
    return Batch(ids=tuple(batch.ids[i] for i in rows), **part)


def dense_logits(model, batch, tokens, lens):
    """[N, V] logits that predict ``tokens``, one row at a time, without padding: the definition."""
    packed = []
    for i in range(batch.size):
        ids = torch.cat([batch.input_ids[i, : batch.prompt_lens[i]], tokens[i, : lens[i]]])[None]
        n = int(batch.mel_lens[i])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), audios=batch.mel[i : i + 1, :, :n], use_cache=False).logits[0]
        start = int(batch.prompt_lens[i]) - 1
        packed.append(logits[start : start + int(lens[i])])
    return torch.cat(packed)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(model, loss, reference):
    model.zero_grad()
    loss.backward()
    ours = gradients(model)
    model.zero_grad()
    reference.backward()
    theirs = gradients(model)
    assert ours.keys() == theirs.keys()
    scale = max(float(g.abs().max()) for g in theirs.values())
    for name in ours:
        # fp32 through four layers: 2⁻²⁴ per operation, a few hundred operations in a row
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-5 * scale, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_sft_equals_dense_cross_entropy_over_the_allowed_ids():
    model, batch = tiny_model(seed=1), make_batch()
    loss = sft_step(model, Engine(model, allowed=ALLOWED), batch)
    logits = dense_logits(model, batch, batch.target_ids, batch.target_lens).masked_fill(~ALLOWED.mask(97), float("-inf"))
    targets = torch.cat([row[:n] for row, n in zip(batch.target_ids, batch.target_lens, strict=True)])
    reference = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    assert loss.count == 10
    torch.testing.assert_close(loss.total, reference, rtol=1e-5, atol=0)
    assert_same_gradients(model, loss.total, reference)


def test_ctc_term_trains_the_encoder_and_the_head():
    model, batch = tiny_model(seed=1), make_batch()
    engine, head = Engine(model, allowed=ALLOWED), CTCHead(48, 97, blank=96, seed=0)
    plain = sft_step(model, engine, batch)
    both = sft_step(model, engine, batch, ctc_head=head, ctc_weight=0.5)
    ctc = both.metrics["ctc_loss"][0]
    assert ctc > 0
    torch.testing.assert_close(both.total, plain.total + 0.5 * ctc)
    (0.5 * head.nll(model.get_audio_features(batch.mel, batch.mel_lens), batch.target_ids, batch.target_lens)).backward()
    assert head.weight.grad.abs().sum() > 0
    assert model.audio_encoder.whisper.conv1.weight.grad.abs().sum() > 0
    assert torch.equal(CTCHead(48, 97, blank=96, seed=0).weight, head.weight)


def test_opd_equals_the_dense_definition():
    student, teacher_model, batch = tiny_model(seed=1), tiny_model(seed=2), make_batch()
    engine = Engine(student, allowed=ALLOWED, topk=8)
    teacher = ArkasrTeacher(teacher_model, allowed=ALLOWED, top_k=8)
    rollout = engine.rollout(batch, max_new_tokens=10)
    loss = opd_loss(student, batch, student.get_audio_features(batch.mel, batch.mel_lens), rollout, teacher.score(batch, rollout), tau=1.5)
    blocked = ~ALLOWED.mask(97)
    s = dense_logits(student, batch, rollout.tokens, rollout.lens).masked_fill(blocked, float("-inf"))
    with torch.no_grad():
        t = dense_logits(teacher_model, batch, rollout.tokens, rollout.lens).masked_fill(blocked, float("-inf"))
    support = torch.zeros_like(t, dtype=torch.bool).scatter_(1, t.topk(8).indices, True).scatter_(1, s.detach().topk(8).indices, True)
    p = (t / 1.5).masked_fill(~support, float("-inf")).log_softmax(-1)
    q = (s / 1.5).masked_fill(~support, float("-inf")).log_softmax(-1)
    reference = 1.5**2 * torch.where(support, p.exp() * (p - q), 0.0).sum()
    assert loss.count == rollout.lens.sum()
    torch.testing.assert_close(loss.total, reference, rtol=1e-4, atol=0)
    assert_same_gradients(student, loss.total, reference)
    support_mean = loss.metrics["opd_valid_topk_mean"]
    assert float(support_mean[0] / support_mean[1]) == pytest.approx(float(support.sum(1).float().mean()))
    assert 8 < float(support_mean[0] / support_mean[1]) < 16


def test_a_student_that_is_its_teacher_has_no_loss_and_no_gradient():
    model, batch = tiny_model(seed=1), make_batch()
    engine, teacher = Engine(model, allowed=ALLOWED, topk=8), ArkasrTeacher(tiny_model(seed=1), allowed=ALLOWED, top_k=8)
    loss = opd_step(model, engine, teacher, batch, tau=1.0, max_new_tokens=8)
    loss.total.backward()
    # logits of size 10 in fp32 carry 1e-6, and the KL is quadratic in a logit's error
    assert abs(float(loss.total.detach())) < 1e-5 * float(loss.count)
    assert max(float(g.abs().max()) for g in gradients(model).values()) < 1e-3


def test_a_teacher_that_begins_early_scores_the_same():
    student, batch = tiny_model(seed=1), make_batch()
    engine, teacher = Engine(student, allowed=ALLOWED, topk=8), ArkasrTeacher(tiny_model(seed=2), allowed=ALLOWED, top_k=8)
    rollout = engine.rollout(batch, max_new_tokens=6)
    early, late = teacher.score(batch, rollout, teacher.begin(batch)), teacher.score(batch, rollout)
    for name in ("ids", "scores", "student_scores", "valid"):
        assert torch.equal(getattr(early, name), getattr(late, name))


@pytest.mark.parametrize("stage", ["opd", "td", "sft"])
def test_a_stage_measures_what_it_says_and_times_its_parts(stage):
    student, batch, entered = tiny_model(seed=1), make_batch(), []
    engine, teacher = Engine(student, allowed=ALLOWED, topk=8), ArkasrTeacher(tiny_model(seed=2), allowed=ALLOWED, top_k=8)

    def phase(name):
        entered.append(name)
        return nullcontext()

    if stage == "opd":
        loss = opd_step(student, engine, teacher, batch, tau=1.0, max_new_tokens=6, phase=phase)
        assert entered == ["encode", "teacher", "rollout", "teacher", "student_score"]
    elif stage == "td":
        loss = td_step(student, engine, teacher, batch, max_new_tokens=6, phase=phase)
        assert entered == ["teacher", "encode", "student_score"]
    else:
        loss = sft_step(student, engine, batch, phase=phase)
        assert entered == ["encode", "student_score"]
    assert set(loss.metrics) == set(metric_names(stage))


def test_overlap_and_end_tokens_are_counted_as_they_are():
    student, batch = tiny_model(seed=1), make_batch()
    engine, teacher = Engine(student, allowed=ALLOWED, topk=8), ArkasrTeacher(tiny_model(seed=2), allowed=ALLOWED, top_k=8)
    rollout = engine.rollout(batch, max_new_tokens=40)
    scores = teacher.score(batch, rollout)
    metrics = opd_step(student, engine, teacher, batch, tau=1.0, max_new_tokens=40).metrics
    both = [len(set(a) & set(b)) for a, b in zip(rollout.topk_ids.tolist(), scores.ids.tolist(), strict=True)]
    assert int(metrics["opd_overlap_mean"][0]) == sum(both) > 0
    row, place = rollout.packed_index()
    tokens = rollout.tokens[row, place].tolist()
    listed = [95 in a or 95 in b for a, b in zip(rollout.topk_ids.tolist(), scores.ids.tolist(), strict=True)]
    ends = [token == 95 for token in tokens]
    found = {name: int(metrics[name][0]) for name in metrics if "terminal" in name}
    assert found == {
        "opd_terminal_rows": sum(ends),
        "opd_terminal_eos_candidate_rows": sum(end and here for end, here in zip(ends, listed, strict=True)),
        "opd_nonterminal_rows": len(ends) - sum(ends),
        "opd_nonterminal_eos_candidate_rows": sum(here and not end for end, here in zip(ends, listed, strict=True)),
    }
    assert sum(ends) > 0
    assert 0 < sum(listed) < len(listed)
    assert all(metrics[name][1] == 0 for name in found), "sums, not means"


@pytest.mark.parametrize("stage", ["opd", "td", "sft"])
def test_an_idle_step_is_zero_and_reaches_every_parameter(stage):
    student, batch = tiny_model(seed=1), make_batch()
    engine = Engine(student, allowed=ALLOWED, topk=8)
    zero = idle_step(student, engine, select(batch, [1]), stage=stage)
    assert zero == 0
    zero.backward()
    assert gradients(student).keys() == {name for name, _ in student.named_parameters()}
    assert all(not gradient.any() for gradient in gradients(student).values())


def test_micro_batches_equal_one_batch():
    student, batch = tiny_model(seed=1), make_batch()
    engine, teacher = Engine(student, allowed=ALLOWED, topk=8), ArkasrTeacher(tiny_model(seed=2), allowed=ALLOWED, top_k=8)
    whole = opd_step(student, engine, teacher, batch, tau=1.0, max_new_tokens=8)
    parts = [opd_step(student, engine, teacher, select(batch, [i]), tau=1.0, max_new_tokens=8) for i in range(3)]
    assert whole.count == sum(part.count for part in parts)
    assert_same_gradients(student, whole.total, sum(part.total for part in parts))


def test_rollouts_of_one_prompt_share_its_audio_and_count_apart():
    student, batch = tiny_model(seed=1), make_batch()
    engine, teacher = Engine(student, allowed=ALLOWED, topk=8), ArkasrTeacher(tiny_model(seed=2), allowed=ALLOWED, top_k=8)
    rollout = engine.rollout(batch, n=2, temperature=1.0, seed=3, max_new_tokens=6)
    both = opd_loss(student, batch, student.get_audio_features(batch.mel, batch.mel_lens), rollout, teacher.score(batch, rollout), tau=1.0)
    parts = []
    for number in (0, 1):
        rows = torch.arange(3) * 2 + number
        row, _ = rollout.packed_index()
        kept = torch.isin(row, rows)
        one = Rollout(
            tokens=rollout.tokens[rows],
            lens=rollout.lens[rows],
            stopped=rollout.stopped[rows],
            owner=torch.arange(3),
            topk_ids=rollout.topk_ids[kept],
        )
        parts.append(
            opd_loss(student, batch, student.get_audio_features(batch.mel, batch.mel_lens), one, teacher.score(batch, one), tau=1.0)
        )
    torch.testing.assert_close(both.total, parts[0].total + parts[1].total, rtol=1e-4, atol=0)
    assert both.count == parts[0].count + parts[1].count


def test_teacher_data_learns_the_teachers_own_transcripts():
    student, teacher_model, batch = tiny_model(seed=1), tiny_model(seed=2), make_batch()
    engine, teacher = Engine(student, allowed=ALLOWED), ArkasrTeacher(teacher_model, allowed=ALLOWED, top_k=8)
    labels = teacher.transcribe(batch, max_new_tokens=8)
    loss = td_step(student, engine, teacher, batch, max_new_tokens=8)
    logits = dense_logits(student, batch, labels.tokens, labels.lens).masked_fill(~ALLOWED.mask(97), float("-inf"))
    targets = torch.cat([row[:n] for row, n in zip(labels.tokens, labels.lens, strict=True)])
    torch.testing.assert_close(loss.total, torch.nn.functional.cross_entropy(logits, targets, reduction="sum"), rtol=1e-4, atol=0)
    assert not any(p.requires_grad for p in teacher_model.parameters())


def test_a_truncated_rollout_has_no_end_target():
    """Every counted position predicts a token that was produced; nothing is appended where the limit cut the row."""
    student, batch = tiny_model(seed=1), make_batch()
    engine, teacher = Engine(student, allowed=ALLOWED, topk=8), ArkasrTeacher(tiny_model(seed=2), allowed=ALLOWED, top_k=8)
    loss = opd_step(student, engine, teacher, batch, tau=1.0, max_new_tokens=3)
    rollout = engine.rollout(batch, max_new_tokens=3)
    assert not rollout.stopped.all()
    assert loss.count == rollout.lens.sum() <= 9


def test_vocabularies_that_differ_are_refused():
    class Tokens:
        def __init__(self, names):
            self.names = names

        def __len__(self):
            return len(self.names)

        def convert_ids_to_tokens(self, ids):
            return [self.names[i] for i in ids]

    ours = Tokens([f"t{i}" for i in range(96)])
    check_same_vocabulary(ours, Tokens(ours.names), ALLOWED)
    check_same_vocabulary(ours, Tokens([*ours.names[:91], "other", *ours.names[92:]]), ALLOWED)  # 91 is not allowed, so it may differ
    with pytest.raises(InputError, match=r"differs from --student_model's at 1 of 91 ids \(id 7: student 't7', teacher 'x'\)"):
        check_same_vocabulary(ours, Tokens([*ours.names[:7], "x", *ours.names[8:]]), ALLOWED)
    with pytest.raises(InputError, match="teacher 'nothing'"):
        check_same_vocabulary(ours, Tokens(ours.names[:80]), ALLOWED)
