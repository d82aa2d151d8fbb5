"""Transformers speech models as teachers: against the models run by hand, batch against one by one, and OPD under each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_teachers import KINDS, WHISPER, glmasr, manifest, whisper
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMultimodalLM, AutoModelForSpeechSeq2Seq, AutoProcessor, WhisperFeatureExtractor
from transformers.models.whisper.tokenization_whisper import LANGUAGES as WHISPER_LANGUAGES
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE as WHISPER_CODES

from arkfast.audio import LogMel
from arkfast.data import collate
from arkfast.distill.losses import opd_loss
from arkfast.distill.step import opd_step, td_step
from arkfast.distill.teachers import TeacherRequest, load_teacher
from arkfast.distill.teachers.hf_causal_lm import HfTeacher
from arkfast.engine import Engine
from arkfast.metrics import canonical, is_known
from arkfast.models.family import find_family
from arkfast.records import Batch, InputError, Rollout, Utterance
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav
from arkfast.train.config import TrainConfig
from arkfast.train.trainer import Trainer

SECONDS = (0.9, 0.45, 1.3, 0.9)
TEXTS = ("one two three", "", "東京 two", "nine")
LANGUAGES = ("en", "German", None, "xx")


class World:
    def __init__(self, root: Path) -> None:
        self.root = root
        tiny_checkpoint(root / "student", seed=1)
        self.family = find_family(root / "student")
        self.model: Any = self.family.load(root / "student", dtype="float32", attn_implementation="sdpa")
        self.tokenizer: Any = self.family.tokenizer(root / "student")
        self.interface = self.family.interface(self.tokenizer, self.model, where="student")
        self.allowed = self.interface.allowed("asr")
        self.engine = Engine(self.model, allowed=self.allowed, topk=12)
        self.clips = [synthetic_speech(seconds, seed=i) for i, seconds in enumerate(SECONDS)]
        for name, make in KINDS.items():
            make(root / name)
        glmasr(root / "same", tokenizer=self.tokenizer)

    def teacher(self, name: str, **changed: Any) -> HfTeacher:
        fields: dict[str, Any] = {
            "model": self.root / name, "student": self.model, "interface": self.interface, "task": "asr", "allowed": self.allowed,
            "top_k": 10, "device": torch.device("cpu"), "dtype": torch.float32, "attn_implementation": "sdpa",
        }  # fmt: skip
        teacher = load_teacher("hf_causal_lm", TeacherRequest(**{**fields, **changed}))
        assert isinstance(teacher, HfTeacher)
        return teacher

    def batch(self, teacher: HfTeacher, rows: tuple[int, ...] = (0, 1, 2, 3)) -> Batch:
        mel = LogMel(128)
        return collate(
            [Utterance(id=f"u{i}", audio=None, text=TEXTS[i], language=LANGUAGES[i]) for i in rows],
            [np.asarray(mel([self.clips[i]])[0])[0] for i in rows],
            self.interface.prompt("asr"),
            prepared=[teacher.prepare(self.clips[i]) for i in rows],
        )

    def rollout(self, rows: tuple[int, ...] = (0, 1, 2, 3)) -> Rollout:
        """What the student might have written of each row, the third cut by the limit, with random top-k lists that hold the token."""
        tokens = [self.tokenizer.encode(TEXTS[i], add_special_tokens=False) + [self.interface.end_id] * (i != 2) for i in rows]
        lens = torch.tensor([len(row) for row in tokens])
        padded = torch.zeros(len(rows), int(lens.max()), dtype=torch.int64)
        topk = []
        for own, row, i in zip(padded, tokens, rows, strict=True):
            own[: len(row)] = torch.tensor(row)
            generator = torch.Generator().manual_seed(i)
            for token in row:
                others = torch.randperm(self.allowed.ranges[0][1], generator=generator)
                topk.append(torch.cat([torch.tensor([token]), others[others != token][:10], torch.tensor([-1])]))
        return Rollout(
            tokens=padded, lens=lens, stopped=torch.tensor([i != 2 for i in rows]), owner=torch.arange(len(rows)),
            topk_ids=torch.stack(topk).int(),
        )  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


EVERY = [*KINDS, "same"]


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_scores_as_its_rows_do_one_by_one(world: World, name: str) -> None:
    teacher = world.teacher(name)
    rollout = world.rollout()
    together = teacher.score(world.batch(teacher), rollout, teacher.begin(world.batch(teacher)))
    alone = [teacher.score(world.batch(teacher, (i,)), world.rollout((i,))) for i in range(4)]
    assert torch.equal(together.valid, torch.cat([one.valid for one in alone]))
    for field in ("scores", "student_scores"):
        torch.testing.assert_close(getattr(together, field), torch.cat([getattr(one, field) for one in alone]), atol=1e-5, rtol=0)
    assert torch.equal(together.ids, torch.cat([one.ids for one in alone]))
    assert len(together.ids[together.valid].unique()) >= 10


def by_hand(world: World, name: str, teacher: HfTeacher, i: int, answer: list[int]) -> torch.Tensor:
    """[answer + 1, V] logits of the model as Transformers itself loads and feeds it."""
    folder, clip = world.root / name, world.clips[i]
    if name == "whisper":
        model = AutoModelForSpeechSeq2Seq.from_pretrained(folder).eval()
        features = WhisperFeatureExtractor.from_pretrained(folder)(clip, sampling_rate=16000, return_tensors="pt").input_features
        assert features.shape == (1, 80, 3000)
        ids = {token: teacher.inputs.tokenizer.convert_tokens_to_ids(token) for token in WHISPER}
        start = [ids["<|startoftranscript|>"]]
        if LANGUAGES[i] in ("en", "German"):
            spoken = ids["<|en|>"] if LANGUAGES[i] == "en" else ids["<|de|>"]
        else:  # the model's own view
            logits = model(input_features=features, decoder_input_ids=torch.tensor([start])).logits[0, -1]
            spoken = max((ids[f"<|{code}|>"] for code in ("en", "de", "ru")), key=lambda token: float(logits[token]))
        prompt = [*start, spoken, ids["<|transcribe|>"], ids["<|notimestamps|>"]]
        logits = model(input_features=features, decoder_input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
        return logits[len(prompt) - 1 :]
    model = AutoModelForMultimodalLM.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "audio", "audio": "x"}, {"type": "text", "text": "Please transcribe this audio into text"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
    assert "transcribe this" in text
    made = processor(text=[text], audio=[clip], sampling_rate=16000, return_tensors="pt")
    prompt = made.pop("input_ids")
    made["attention_mask"] = torch.ones(1, prompt.shape[1] + len(answer), dtype=torch.int64)
    logits = model(input_ids=torch.cat([prompt, torch.tensor([answer], dtype=torch.int64)], 1), **made).logits[0]
    return logits[prompt.shape[1] - 1 :]


@torch.no_grad()
@pytest.mark.parametrize("name", EVERY)
def test_scores_are_those_of_the_model_run_by_hand(world: World, name: str) -> None:
    teacher = world.teacher(name)
    assert teacher.direct == (name == "same")
    rollout = world.rollout()
    assert rollout.topk_ids is not None
    scores = teacher.score(world.batch(teacher), rollout)
    aligned = teacher._aligned([row[:n].tolist() for row, n in zip(rollout.tokens, rollout.lens, strict=True)], rollout.stopped.tolist())
    starts = [0, *rollout.lens.cumsum(0).tolist()]
    for i in range(4):
        logits = by_hand(world, name, teacher, i, aligned.fed[i])
        for n in range(starts[i], starts[i + 1]):
            place = int(aligned.place[n])
            assert bool(scores.valid[n]) == (place >= 0)
            if place < 0:
                assert torch.isinf(scores.student_scores[n]).all()
                continue
            table = teacher._table[int(aligned.kind[n])].tolist()
            wanted = {own: float(logits[place, there]) for own, there in enumerate(table) if there >= 0}
            best = sorted(wanted, key=lambda own: (-wanted[own], own))[: teacher.top_k]
            assert scores.ids[n].tolist() == best
            torch.testing.assert_close(scores.scores[n], torch.tensor([wanted[own] for own in best]), atol=1e-4, rtol=0)
            own = torch.tensor([wanted.get(int(token), float("-inf")) for token in rollout.topk_ids[n]])
            torch.testing.assert_close(scores.student_scores[n], own, atol=1e-4, rtol=0)
    if name == "same":
        assert scores.valid.all()


@pytest.mark.parametrize("name", ["whisper", "same"])
def test_the_log_sum_exp_is_over_the_students_ids_that_it_has(world: World, name: str) -> None:
    teacher = world.teacher(name, top_k=world.allowed.count, lse_temperature=1.5)
    scores = teacher.score(world.batch(teacher), world.rollout())
    assert scores.lse is not None
    whole = (scores.scores / 1.5).logsumexp(1)  # its list holds every id
    torch.testing.assert_close(scores.lse[scores.valid], whole[scores.valid], atol=1e-5, rtol=0)
    assert world.teacher(name).score(world.batch(teacher), world.rollout()).lse is None


def test_equal_vocabularies_are_aligned_whole(world: World) -> None:
    shares = {}
    for name in EVERY:
        teacher = world.teacher(name)
        batch, rollout = world.batch(teacher), world.rollout()
        audio = world.model.get_audio_features(batch.mel, batch.mel_lens)
        loss = opd_loss(world.model, batch, audio, rollout, teacher.score(batch, rollout), tau=1.0)
        aligned, count = (float(x) for x in loss.metrics["opd_aligned_share"])
        assert count == int(rollout.lens.sum())
        assert float(loss.count) <= aligned
        shares[name] = aligned / count
    assert shares.pop("same") == 1
    assert all(0.2 < share < 1 for share in shares.values()), shares


@torch.no_grad()
def test_a_whisper_teacher_follows_its_own_transcript(world: World) -> None:
    teacher = world.teacher("whisper")
    begun = teacher.begin(world.batch(teacher))
    rows = begun.rows
    answers, ended = teacher.model.answers(rows, begun.states, spoken=teacher._spoken, ends=sorted(teacher._ends), max_new_tokens=20)
    places = [list(range(len(answer) + end)) for answer, end in zip(answers, ended, strict=True)]
    written = set()
    for part, logits in teacher.model.scores(rows, begun.states, answers, places):
        best = iter(logits.masked_fill(~teacher._spoken, float("-inf")).argmax(1).tolist())
        for i in part:
            wanted = [*answers[i], *sorted(teacher._ends)] if ended[i] else answers[i]
            assert [next(best) for _ in places[i]] == wanted
            written |= set(wanted)
    assert len(written) >= 10, "a model that repeats one id proves nothing"


@pytest.mark.parametrize("name", EVERY)
def test_its_own_answers_in_the_students_ids(world: World, name: str) -> None:
    teacher = world.teacher(name)
    together = teacher.transcribe(world.batch(teacher), max_new_tokens=14)
    assert together.tokens.shape[0] == 4
    assert all(int(token) in world.allowed for token in together.tokens[together.packed_index()].tolist())
    for i in range(4):
        alone = teacher.transcribe(world.batch(teacher, (i,)), max_new_tokens=14)
        assert alone.tokens[0, : alone.lens[0]].tolist() == together.tokens[i, : together.lens[i]].tolist()
        assert bool(alone.stopped[0]) == bool(together.stopped[i])
    assert len(set(together.tokens.flatten().tolist())) >= 8
    loss = td_step(world.model, world.engine, teacher, world.batch(teacher), max_new_tokens=6)
    assert torch.isfinite(loss.total)


def test_rollouts_of_one_clip_share_its_inputs(world: World) -> None:
    teacher = world.teacher("whisper")
    batch = world.batch(teacher, (0, 2))
    rollout = world.engine.rollout(batch, n=2, temperature=1.0, seed=1, max_new_tokens=7)
    scores = teacher.score(batch, rollout)
    assert len(scores.valid) == int(rollout.lens.sum())
    assert scores.valid[torch.cat([torch.zeros(1, dtype=torch.int64), rollout.lens.cumsum(0)[:-1]])].all(), "every beginning is met"


def test_positions_past_the_teachers_table_are_left_out(world: World) -> None:
    teacher = world.teacher("whisper")
    assert teacher.model.limit == 64
    row = world.tokenizer.encode("one two " * 60, add_special_tokens=False)
    rollout = Rollout(
        tokens=torch.tensor([row]), lens=torch.tensor([len(row)]), stopped=torch.tensor([False]), owner=torch.tensor([0]),
        topk_ids=torch.tensor(row)[:, None].int(),
    )  # fmt: skip
    scores = teacher.score(world.batch(teacher, (0,)), rollout)
    assert scores.valid[0]
    assert 0 < int(scores.valid.sum()) < len(row)
    assert not scores.valid[-1]


@pytest.mark.parametrize("name", KINDS)
def test_the_loss_of_a_fixed_batch_goes_down(world: World, name: str) -> None:
    """The same rollout again and again, so that nothing but the student's scores changes."""
    teacher = world.teacher(name)
    student: Any = world.family.load(world.root / "student", dtype="float32", attn_implementation="sdpa")
    batch, rollout = world.batch(teacher), world.rollout()
    scores = teacher.score(batch, rollout)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = opd_loss(student, batch, student.get_audio_features(batch.mel, batch.mel_lens), rollout, scores, tau=1.0)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
        losses.append(float(loss.total.detach() / loss.count))
    assert losses[-1] < 0.5 * losses[0]
    assert torch.isfinite(opd_step(student, world.engine, teacher, batch, tau=1.0, max_new_tokens=6).total)


@pytest.mark.parametrize(("name", "workers"), [*((name, 0) for name in EVERY), ("whisper", 1)])
def test_opd_under_each(world: World, tmp_path: Path, name: str, workers: int) -> None:
    clips = []
    for i, clip in enumerate(world.clips):
        write_wav(tmp_path / f"{i}.wav", clip)
        clips.append((f"{i}.wav", TEXTS[i] or "one", LANGUAGES[i]))
    Trainer(
        TrainConfig(
            stage="opd", student_model=world.root / "student", teacher_model=world.root / name, teacher_backend="hf_causal_lm",
            train_data=manifest(tmp_path / "train.jsonl", clips), output_dir=tmp_path / "run", per_device_train_batch_size=2, max_steps=3,
            learning_rate=1e-3, opd_top_k=8, asr_opd_max_new_tokens=8, dataloader_num_workers=workers, device="cpu",
            teacher_prompt="Write it down" if name == "glmasr" else None, calibration_batches=0, gates="off",
        )
    ).run()  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    assert len({row["loss"] for row in rows}) == 3
    assert all(np.isfinite(row["loss"]) and 0 < row["opd_aligned_share"] <= 1 for row in rows)
    assert all(row["opd_aligned_share"] == 1 for row in rows) == (name == "same")


def test_prompts_of_the_user(world: World) -> None:
    def read(name: str, prompt: str) -> str:
        teacher = world.teacher(name, prompt=prompt)
        (row,) = teacher.inputs.rows(world.batch(teacher, (0,)), teacher._detected)
        return str(teacher.inputs.tokenizer.decode(row.prompt, skip_special_tokens=False))

    assert "Write it down<|im_end|>" in read("glmasr", "Write it down")
    whole = read("glmasr", "Hear: <|audio|> Write:")
    assert whole.startswith("Hear: <|audio|>")
    assert whole.endswith("<|audio|> Write:")
    assert read("whisper", "<|startoftranscript|><|ru|><|translate|>") == "<|startoftranscript|><|ru|><|translate|>"
    tiny_checkpoint(world.root / "arkasr", seed=2)
    request = {"prompt": "Write it down", "model": world.root / "arkasr"}
    with pytest.raises(InputError, match="--teacher_prompt: the teacher arkasr has no such choice"):
        load_teacher("arkasr", TeacherRequest(**{**vars(world_request(world)), **request}))


def world_request(world: World) -> TeacherRequest:
    return TeacherRequest(
        model=world.root / "student", student=world.model, interface=world.interface, task="asr", allowed=world.allowed, top_k=4,
        device=torch.device("cpu"), dtype=torch.float32, attn_implementation="sdpa",
    )  # fmt: skip


def test_what_cannot_teach_is_one_message(world: World, tmp_path: Path) -> None:
    whisper(tmp_path / "whisper")
    weights = load_file(tmp_path / "whisper" / "model.safetensors")
    first = next(name for name in weights if name.endswith("fc1.weight"))
    save_file({name: weight for name, weight in weights.items() if name != first}, tmp_path / "whisper" / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(InputError, match=r"1 weights are missing or have other shapes, model\..*fc1\.weight"):
        world.teacher("whisper", model=tmp_path / "whisper")
    (tmp_path / "whisper" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "whisper" / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"holds pytorch_model\.bin but no safetensors weights"):
        world.teacher("whisper", model=tmp_path / "whisper")
    with pytest.raises(InputError, match=r"the clip has 31\.0 s and the teacher hears 30 s at most"):
        world.teacher("whisper").prepare(np.zeros(31 * 16000, dtype=np.float32))
    glmasr(tmp_path / "glm")
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer.json"):
        (tmp_path / "glm" / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match="its processor cannot make a prompt with audio"):
        world.teacher("glm", model=tmp_path / "glm")


def test_every_language_of_whisper_is_found_by_its_code_and_by_its_names() -> None:
    found = {code: canonical(code) for code in WHISPER_LANGUAGES}
    assert all(code is not None and is_known(code) for code in found.values())
    assert len(set(found.values())) == len(found), "two tokens would be one language"
    names = {name: code for code, name in WHISPER_LANGUAGES.items()} | WHISPER_CODES
    assert {name: canonical(name) for name in names} == {name: found[code] for name, code in names.items()}
