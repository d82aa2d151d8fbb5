"""One step of each stage, from a batch to a loss.

``opd``: the student transcribes, the teacher scores exactly those tokens, the student moves towards the teacher.
``td``: the teacher transcribes, the student learns its words. ``sft``: the student learns the reference.
The student encodes its audio once a step: the rollout reads the embeddings that the loss is differentiated through.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from arkfast.distill.losses import CTCHead, LossSum, cross_entropy_loss, opd_loss
from arkfast.distill.teachers import Teacher
from arkfast.engine import Engine
from arkfast.records import Batch, Rollout


def opd_step(student: Any, engine: Engine, teacher: Teacher, batch: Batch, *, tau: float, **decoding: Any) -> LossSum:
    """On-policy distillation on one batch; ``tau`` is the loss's temperature, ``decoding`` goes to ``Engine.rollout``."""
    audio = student.get_audio_features(batch.mel, batch.mel_lens)
    rollout = engine.rollout(batch, audio=audio, **decoding)
    scores = teacher.score(batch, rollout)
    loss = opd_loss(student, batch, audio, rollout, scores, tau=tau)
    return _with_rollout_metrics(loss, rollout)


def td_step(student: Any, engine: Engine, teacher: Teacher, batch: Batch, *, max_new_tokens: int) -> LossSum:
    """Teacher data on one batch: the teacher's own greedy transcripts as labels. ``engine`` gives the ids that have no probability."""
    labels = teacher.transcribe(batch, max_new_tokens=max_new_tokens)
    audio = student.get_audio_features(batch.mel, batch.mel_lens)
    return _with_rollout_metrics(cross_entropy_loss(student, batch, audio, labels, engine.blocked), labels)


def sft_step(student: Any, engine: Engine, batch: Batch, *, ctc_head: CTCHead | None = None, ctc_weight: float = 0.0) -> LossSum:
    """Supervised fine-tuning on one batch of references."""
    assert batch.target_ids is not None, "a supervised batch carries targets"
    assert batch.target_lens is not None
    device = batch.target_ids.device
    target = Rollout(
        tokens=batch.target_ids,
        lens=batch.target_lens,
        stopped=torch.ones(batch.size, dtype=torch.bool, device=device),
        owner=torch.arange(batch.size, device=device),
    )
    audio = student.get_audio_features(batch.mel, batch.mel_lens)
    return cross_entropy_loss(student, batch, audio, target, engine.blocked, ctc_head=ctc_head, ctc_weight=ctc_weight)


def _with_rollout_metrics(loss: LossSum, rollout: Rollout) -> LossSum:
    """The loss with the rollout's length statistics, under the names of the original's log."""
    rows = torch.full((), float(len(rollout.lens)), device=rollout.lens.device)
    empty = rollout.stopped & (rollout.lens == 1)  # nothing but the end token
    generated = {
        "generated_tokens_mean": (rollout.lens.sum().float(), rows),
        "generated_nonempty": ((~empty).sum().float(), rows),
        "generated_stopped": (rollout.stopped.sum().float(), rows),
    }
    return replace(loss, metrics=loss.metrics | generated)
