"""The languages that the Qwen3-ASR teacher is told or detects, and what becomes of rows in those it does not know."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from qwen3_asr_world import LENS, World

from arkfast.data.collate import pad_right
from arkfast.distill import td_step
from arkfast.distill.languages import COUNTED
from arkfast.distill.losses import cross_entropy_loss, opd_loss
from arkfast.distill.references import references
from arkfast.distill.sequence import encoded
from arkfast.engine import Engine
from arkfast.models.family import load_model
from arkfast.models.packed import pack
from arkfast.models.qwen3_asr.languages import NAMES, Spoken, spoken


@pytest.fixture
def world(qwen3_asr_world: World) -> World:
    return qwen3_asr_world


@pytest.mark.parametrize(
    ("language", "text", "want"),
    [
        ("de", None, Spoken("German")), ("German", "請", Spoken("German")), ("pt-BR", None, Spoken("Portuguese")),
        ("por", None, Spoken("Portuguese")), ("cmn-Hans", None, Spoken("Chinese")), ("yue", None, Spoken("Cantonese")),
        ("Farsi", None, Spoken("Persian")), ("tl", None, Spoken("Filipino")), ("hr", "dobar dan", Spoken(None, "hr")),
        ("Slovenian", None, Spoken(None, "sl")), ("est", None, Spoken(None, "et")), ("sw", None, Spoken(None, "sw")),
        ("zh-en", "请 open", Spoken(None)), (None, None, Spoken(None)), ("und", "hello", Spoken(None)),
        (None, "language learning takes time", Spoken(None)), (None, "東京は晴れ。", Spoken("Japanese")),
        (None, "请转写这段音频。", Spoken("Chinese")), (None, "the word 水 means water", Spoken(None)),
        (None, "he said カラオケ and left early", Spoken(None)), (None, "안녕하세요", Spoken("Korean")), (None, "Привет мир", Spoken(None)),
        ("日本語", None, Spoken("Japanese")),
        ("jp", None, Spoken("Japanese")), ("русский", None, Spoken("Russian")), ("arz", None, Spoken("Arabic")),
        ("klingon", "안녕하세요", Spoken("Korean")), ("klingon", "nuqneH", Spoken(None)), ("kr", "안녕하세요", Spoken("Korean")),
        ("kr", "ndu ye", Spoken(None, "kr")), ("wu", "侬好", Spoken(None, "wuu")), ("bzj", "weh di gaan", Spoken(None, "bzj")),
        (None, "สวัสดี", Spoken("Thai")), (None, "καλημέρα", Spoken("Greek")), (None, "2024", Spoken(None)),
    ],
)  # fmt: skip
def test_language_is_that_of_the_data_else_of_the_references_script(language, text, want):
    assert spoken(language, text) == want


def test_every_language_that_is_told_is_counted_under_its_name():
    assert set(NAMES.values()) <= set(COUNTED)
    assert len(NAMES) == 30


def test_the_reference_tells_the_language_and_the_students_output_does_not(world):
    teacher = world.teacher()
    batch = world.batch(teacher, languages=(None,) * 4, texts=("東京は晴れ。", "请转写", "안녕", "seven"))
    rollout = world.rollout()
    scores = teacher.score(batch, rollout)
    assert scores.languages == ("Japanese", "Chinese", "Korean", "detected")
    other = teacher.score(batch, replace(rollout, tokens=rollout.tokens.flip(0), lens=rollout.lens.flip(0), owner=rollout.owner))
    assert other.languages == scores.languages


@torch.no_grad()
def test_detection_takes_the_likeliest_language_by_the_whole_of_what_it_would_write(world):
    teacher = world.teacher()
    own, _ = teacher.read(world.batch(teacher, languages=(None,) * 4))
    chosen = set()
    for i in range(4):
        likelihood = {}
        for name in NAMES.values():
            tail = world.processor.tokenizer.encode(f"language {name}<asr_text>", add_special_tokens=False)
            logits = world.dense(teacher, i, tail, prefix="")
            likelihood[name] = float(logits.log_softmax(-1)[torch.arange(len(tail)), torch.tensor(tail)].sum())
        best = max(likelihood, key=likelihood.__getitem__)
        text = world.processor.tokenizer.decode(own.input_ids[i, : own.prompt_lens[i]])
        assert text.endswith(f"assistant\nlanguage {best}<asr_text>")
        chosen.add(best)
    assert chosen


def test_rows_in_languages_that_it_does_not_know_are_left_out_and_counted(world):
    teacher, rollout = world.teacher(), world.rollout()
    batch = world.batch(teacher, languages=("en", "hr", "sw", "lt"))
    scores = teacher.score(batch, rollout)
    assert scores.languages == ("English", "skipped: Croatian", "skipped: another", "skipped: Lithuanian")
    row, _ = rollout.packed_index()
    assert torch.equal(scores.valid, row == 0)
    loss = opd_loss(world.student, batch, encoded(world.student, batch), rollout, scores, tau=1.0)
    assert float(loss.count) == LENS[0]
    alone, only = world.batch(teacher, [0]), world.rollout([0])
    want = opd_loss(world.student, alone, encoded(world.student, alone), only, teacher.score(alone, only), tau=1.0)
    torch.testing.assert_close(loss.total, want.total, atol=1e-4, rtol=1e-5)

    asked = world.teacher(unsupported_language="none")
    scores = asked.score(batch, rollout)
    assert scores.languages == ("English", "detected", "detected", "detected")
    assert scores.valid.all()


@pytest.mark.parametrize("languages", [("en", "hr", "en", "sw"), ("hr", "sk", "sl", "et")], ids=["two of them", "all"])
def test_rows_in_such_languages_learn_their_references_where_that_is_chosen(world, languages):
    """The loss, its count and its gradient are those of the scored rows and of the references, each computed alone."""
    teacher, skipping, student = world.teacher(unsupported_language="sft"), world.teacher(), load_model(world.root / "student")
    texts = ("dobar dan", "jedan dva tri", " ", "moja")
    batch = world.batch(teacher, languages=languages, texts=texts)
    ids = [
        [*world.interface.tokenizer.encode(text, add_special_tokens=False), world.interface.end_id] if text.strip() else []
        for text in texts
    ]
    target_ids, target_lens = pad_right(ids)
    batch = replace(batch, target_ids=target_ids, target_lens=target_lens)
    engine = Engine(student, allowed=world.allowed)
    learnt = [i for i, language in enumerate(languages) if language != "en" and texts[i].strip()]

    def gradient(*losses: Any) -> Any:
        student.zero_grad()
        sum(loss.total for loss in losses).backward()
        return student.lm_head.weight.grad.clone()

    rollout = world.rollout()
    scores = teacher.score(batch, rollout)
    assert scores.by_reference == tuple(learnt)
    assert [name.startswith("reference: ") for name in scores.languages] == [i in learnt for i in range(4)]
    assert scores.languages[2] in ("English", "skipped: Slovene")
    limits = {"blocked": engine.blocked, "allowed": engine.allowed}
    loss = opd_loss(student, batch, encoded(student, batch), rollout, scores, tau=1.0, **limits)
    found = gradient(loss)
    scored = opd_loss(student, batch, encoded(student, batch), rollout, skipping.score(batch, rollout), tau=1.0)
    words = references(batch, learnt)
    alone = cross_entropy_loss(student, batch, encoded(student, batch), words, **limits)
    assert float(loss.count) == float(scored.count) + sum(len(ids[i]) for i in learnt)
    torch.testing.assert_close(loss.total, scored.total + alone.total, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(loss.metrics["asr_loss"][0], alone.total.detach(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found, gradient(scored, alone), atol=1e-4, rtol=1e-4)

    labels = teacher.transcribe(batch, max_new_tokens=2)
    for i in range(4):
        if i in learnt:
            assert labels.tokens[i, : labels.lens[i]].tolist() == ids[i]
        elif languages[i] != "en":
            assert labels.lens[i] == 0
    assert labels.languages == scores.languages


@pytest.mark.parametrize("languages", [("en", "hr", "en", "en"), ("hr", "sk", "sl", "et")], ids=["one of them", "all"])
def test_its_transcripts_of_such_rows_are_not_learnt_either(world, languages):
    teacher = world.teacher()
    batch = world.batch(teacher, languages=languages)
    labels = teacher.transcribe(batch, max_new_tokens=6)
    skipped = torch.tensor([language != "en" for language in languages])
    assert torch.equal(labels.lens == 0, skipped)
    loss = td_step(world.student, Engine(world.student, allowed=world.allowed), teacher, batch, max_new_tokens=6)
    assert float(loss.count) == float(labels.lens.sum())
    assert bool(torch.isfinite(loss.total))
    assert (
        loss.languages
        == labels.languages
        == tuple(
            "English" if code == "en" else f"skipped: {name}"
            for code, name in zip(
                languages, ("Croatian", "Croatian" if "sk" not in languages else "Slovak", "Slovene", "Estonian"), strict=True
            )
        )
    )


def test_a_student_of_packed_rows_learns_the_same_transcripts(world):
    """With rows that are left out, after all of them have been produced."""
    teacher, student = world.teacher(), load_model(world.root / "student")
    batch = world.batch(teacher, languages=("en", "hr", "en", "sl"))
    engine = Engine(student, allowed=world.allowed)
    want = td_step(student, engine, teacher, batch, max_new_tokens=6)
    assert pack(student)
    got = td_step(student, engine, teacher, batch, max_new_tokens=6)
    assert float(want.total.detach()) > 0.1
    assert float(got.count) == float(want.count)
    torch.testing.assert_close(got.total, want.total, rtol=1e-5, atol=0)


def test_a_batch_that_is_all_left_out_teaches_nothing(world):
    teacher, rollout = world.teacher(), world.rollout()
    batch = world.batch(teacher, languages=("hr", "sk", "sl", "et"))
    student = load_model(world.root / "student")
    losses = [opd_loss(student, batch, encoded(student, batch), rollout, teacher.score(batch, rollout), tau=1.0)]
    losses.append(td_step(student, Engine(student, allowed=world.allowed), teacher, batch, max_new_tokens=4))
    for loss in losses:
        loss.total.backward()
        assert float(loss.count) == float(loss.total) == 0
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    assert gradients
    assert not any(gradient.any() for gradient in gradients)
