"""Whisper-base on recorded speech in five languages, as a teacher; skipped by name where the packages cannot be had."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recorded
import torch

from arkfast import audio
from arkfast.audio import LogMel
from arkfast.data import collate
from arkfast.distill.teachers import TeacherRequest, load_teacher
from arkfast.distill.teachers.hf_causal_lm import HfTeacher
from arkfast.evaluate import command as evaluate_command
from arkfast.evaluate import evaluate_rows
from arkfast.infer import command as infer_command
from arkfast.manifest import command as manifest_command
from arkfast.models.arkasr.new import build_tokenizer, new_checkpoint
from arkfast.models.family import find_family
from arkfast.records import Utterance
from arkfast.testing import TINY
from arkfast.train.config import TrainConfig
from arkfast.train.trainer import Trainer

pytestmark = pytest.mark.slow
BATCH = 12


class World:
    """The clips with their manifest, a tiny student that can write their texts, and the teacher."""

    def __init__(self, root: Path) -> None:
        (root / "clips").mkdir()
        (root / "whisper").mkdir()
        self.clips = recorded.clips(root / "clips")
        self.folder = recorded.whisper_base(root / "whisper")
        self.manifest = root / "given.jsonl"
        rows = [
            {"audio": str(path), "text": text, "language": language, "id": f"c{i}"} for i, (path, text, language) in enumerate(self.clips)
        ]
        self.manifest.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self.rows = rows
        self.student = new_checkpoint(
            root / "student", build_tokenizer([text for _, text, _ in self.clips] * 4, vocab_size=1200), seed=1, **TINY
        )
        family = find_family(self.student)
        self.model: Any = family.load(self.student, dtype="float32", attn_implementation="sdpa")
        self.interface = family.interface(family.tokenizer(self.student), self.model, where="student")
        allowed = self.interface.allowed("asr")
        teacher = load_teacher(
            "hf_causal_lm",
            TeacherRequest(
                model=self.folder, student=self.model, interface=self.interface, task="asr", allowed=allowed, top_k=16,
                device=torch.device("cpu"), dtype=torch.float32, attn_implementation="sdpa",
            ),
        )  # fmt: skip
        assert isinstance(teacher, HfTeacher)
        self.teacher = teacher

    def batch(self, rows: list[dict[str, str]]) -> Any:
        waveforms = [audio.load(row["audio"]) for row in rows]
        mel = LogMel(128)
        return collate(
            [Utterance(id=row["id"], audio=None, language=row["language"]) for row in rows],
            [np.asarray(mel([samples])[0])[0] for samples in waveforms],
            self.interface.prompt("asr"),
            prepared=[self.teacher.prepare(samples) for samples in waveforms],
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    try:
        return World(tmp_path_factory.mktemp("recorded"))
    except recorded.Absent as reason:
        pytest.skip(f"recorded speech and Whisper-base are not to be had: {reason}")


@torch.no_grad()
def test_it_transcribes_and_follows_its_own_transcripts(world: World) -> None:
    teacher = world.teacher
    assert not teacher.direct
    transcribed = []
    for start in range(0, len(world.rows), BATCH):
        rows = world.rows[start : start + BATCH]
        batch = world.batch(rows)
        assert batch.teacher_inputs["input_features"].values.shape == (len(rows), 80, 3000), "a window of 30 s, whatever the clip"
        begun = teacher.begin(batch)
        answers, ended = teacher.model.answers(
            begun.rows, begun.states, spoken=teacher._spoken, ends=sorted(teacher._ends), max_new_tokens=60
        )
        assert all(ended)
        places = [list(range(len(answer) + 1)) for answer in answers]
        for part, logits in teacher.model.scores(begun.rows, begun.states, answers, places):
            best = iter(logits.masked_fill(~teacher._spoken, float("-inf")).argmax(1).tolist())
            for i in part:
                assert [next(best) for _ in places[i]] == [*answers[i], *sorted(teacher._ends)]
        transcribed += [{**row, "pred_text": teacher._text(answer)} for row, answer in zip(rows, answers, strict=True)]
    assert Counter(row["language"] for row in transcribed) == recorded.CLIPS
    found = evaluate_rows(transcribed)
    rates = {group.name: round(100 * group.wer, 1) for group in found.groups}
    assert 100 * found.wer <= 20, rates


def test_five_steps_of_a_small_student(world: World, tmp_path: Path) -> None:
    Trainer(
        TrainConfig(
            stage="opd", student_model=world.student, teacher_model=world.folder, teacher_backend="hf_causal_lm",
            train_data=world.manifest, output_dir=tmp_path / "run", per_device_train_batch_size=2, max_steps=5, learning_rate=1e-3,
            opd_top_k=16, asr_opd_max_new_tokens=12, dataloader_num_workers=1, device="cpu", gates="off", calibration_batches=0,
        )
    ).run()  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    assert len(rows) == 5
    assert all(np.isfinite(row["loss"]) and 0 < row["opd_aligned_share"] <= 1 for row in rows)
    assert len({row["loss"] for row in rows}) == 5


def test_the_clips_go_through_every_door(world: World, tmp_path: Path) -> None:
    scanned, output, scores = (tmp_path / name for name in ("scanned.jsonl", "transcribed.jsonl", "scores.json"))
    words = ["scan", "--input", str(world.manifest), "--output", str(scanned), "--rejects", str(tmp_path / "rejects.jsonl")]
    assert manifest_command.main(words) == 0
    rows = [json.loads(line) for line in scanned.read_text().splitlines()]
    assert len(rows) == 60
    assert all(1.5 <= row["duration"] <= 8 for row in rows)
    words = ["--input", str(scanned), "--output", str(output), "--model_path", str(world.student), "--max_new_tokens", "16"]
    assert infer_command.main([*words, "--device", "cpu"]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["status"] for row in rows] == ["ok"] * 60
    assert evaluate_command.main(["--input", str(output), "--output", str(scores)]) == 0
    assert scores.exists()
