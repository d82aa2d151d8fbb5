"""What this library computes of the clips: the side that is compared.

What is kept of it lies in main memory, so that the models can leave the device before Transformers' own arrive. Letters: N produced
positions of all clips, K top-k ids, H decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from arkfast.audio import LogMel
from arkfast.data import collate, extract
from arkfast.distill.sequence import at_predicting_positions, encoded
from arkfast.distill.teachers import Teacher, TeacherRequest, load_teacher
from arkfast.engine import Engine
from arkfast.kernels import opd_union_kl
from arkfast.models import find_family
from arkfast.models.family import SpeechModel
from arkfast.prove.clips import Clip
from arkfast.prove.config import ProveConfig
from arkfast.records import AllowedTokens, Batch, InputError, Interface, Rollout, TeacherScores


@dataclass(frozen=True)
class Ids:
    """What the student's ids mean; all that is needed of it once its weights are gone."""

    interface: Interface
    allowed: AllowedTokens


@dataclass(frozen=True)
class Student:
    """The student with what is around it."""

    model: SpeechModel
    ids: Ids
    top_k: int


@dataclass(frozen=True)
class Heard:
    """What the student makes of the clips."""

    features: list[np.ndarray]
    """[n_mels, T] of each clip."""
    prompts: list[list[int]]
    together: list[Tensor]
    """Audio embeddings [A, H] of each clip, encoded in one batch."""
    alone: list[Tensor]
    """The same, each clip encoded by itself."""
    batch: Batch
    rollout: Rollout
    """Greedy, with top-k ids."""

    @property
    def answers(self) -> list[list[int]]:
        """The produced ids of each clip."""
        return [row[:n] for row, n in zip(self.rollout.tokens.tolist(), self.rollout.lens.tolist(), strict=True)]


@dataclass(frozen=True)
class Scored:
    """What the teacher makes of the student's answers, and the loss."""

    scores: TeacherScores
    rows: Tensor
    """[N] the loss of each position as a training step computes it in float32, 0 where it does not count."""
    counts: Tensor
    """[N] bool: the positions that count."""
    hidden: Tensor
    """[N, H] float64 the student's states before its head."""
    ids: Tensor
    """[W] the ids in any union, ascending."""
    head: Tensor
    """[W, H] float64 their rows of the head."""


def load_student(folder: Path, config: ProveConfig, device: torch.device) -> Student:
    """The student in float32.

    Raises:
        InputError: its checkpoint cannot be used.
    """
    family = find_family(folder)
    model: SpeechModel = family.load(folder, dtype=torch.float32, attn_implementation="sdpa", device=device)
    interface = family.interface(family.tokenizer(folder), model, where=f"--student_model {folder}")
    if interface.n_mels is None:
        raise InputError(f"--student_model {folder}: the model hears nothing; give one that transcribes")
    allowed = interface.allowed("asr")
    return Student(model, Ids(interface, allowed), min(config.opd_top_k, allowed.count))


def load_its_teacher(folder: Path, config: ProveConfig, student: Student, device: torch.device) -> Teacher:
    """The teacher in float32.

    Raises:
        InputError: its checkpoint cannot be used, or does not fit the student.
    """
    request = TeacherRequest(
        model=folder,
        student=student.model,
        interface=student.ids.interface,
        task="asr",
        allowed=student.ids.allowed,
        top_k=student.top_k,
        device=device,
        dtype=torch.float32,
        attn_implementation="sdpa",
    )
    return load_teacher(config.teacher_backend, request)


@torch.no_grad()
def hear(student: Student, teacher: Teacher | None, clips: Sequence[Clip], config: ProveConfig, device: torch.device) -> Heard:
    """Features, encoder states and greedy answers, with the teacher's own inputs in the batch where there is a teacher."""
    interface = student.ids.interface
    assert interface.n_mels is not None
    log_mel, prompt = LogMel(interface.n_mels), interface.prompt("asr")
    rows = [clip.row for clip in clips]
    features = [extract(row, log_mel, max_seconds=config.max_audio_seconds) for row in rows]
    prepare = None if teacher is None else teacher.prepare
    prepared = None if prepare is None else [prepare(clip.samples) for clip in clips]
    batch = collate(rows, features, prompt, None, prepared).to(device)
    audio = encoded(student.model, batch)
    assert audio is not None
    together = [row[: int(n)].cpu() for row, n in zip(audio[0], audio[1], strict=True)]
    alone = [student.model.get_audio_features(torch.from_numpy(mel)[None].to(device))[0][0].cpu() for mel in features]
    engine = Engine(student.model, allowed=student.ids.allowed, topk=student.top_k)
    rollout = engine.rollout(batch, audio=audio, max_new_tokens=config.max_new_tokens)
    prompts = [ids[:n] for ids, n in zip(batch.input_ids.tolist(), batch.prompt_lens.tolist(), strict=True)]
    return Heard(features, prompts, together, alone, batch, rollout)


@torch.no_grad()
def score(student: Student, teacher: Teacher, heard: Heard) -> Scored:
    """The teacher's scores and each position's loss, as a step of on-policy distillation computes them."""
    batch, rollout = heard.batch, heard.rollout
    scores = teacher.score(batch, rollout, teacher.begin(batch))
    assert rollout.topk_ids is not None
    topk_ids = rollout.topk_ids
    taught = torch.cat([scores.student_scores, scores.scores], 1).masked_fill(~scores.valid[:, None], float("-inf"))
    listed = torch.cat([topk_ids, scores.ids], 1)
    ids = listed[listed >= 0].unique().to(torch.int64)
    audio = encoded(student.model, batch)

    def head(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        found = opd_union_kl(hidden, weight, topk_ids, scores.ids, taught, reduction="none")
        return found.loss, found.valid, hidden.double(), weight[ids].double()

    rows, counts, hidden, rows_of_head = at_predicting_positions(student.model, batch, audio, rollout, head)
    return Scored(scores.to("cpu"), rows.cpu(), counts.cpu(), hidden.cpu(), ids.cpu(), rows_of_head.cpu())
