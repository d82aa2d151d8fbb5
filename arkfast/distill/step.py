"""One step of each stage, from a batch to a loss.

``opd``: the student transcribes, the teacher scores exactly those tokens, the student moves towards the teacher.
``td``: the teacher transcribes, the student learns its words. ``sft``: the student learns the reference.
The student encodes its audio once a step: the rollout reads the embeddings that the loss is differentiated through.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from arkfast.distill.guards import Guards, guarded
from arkfast.distill.losses import ALIKE, PAPER, CTCHead, LossSum, cross_entropy_loss, opd_loss
from arkfast.distill.objective import Objective
from arkfast.distill.references import references
from arkfast.distill.sequence import encoded
from arkfast.distill.teachers import Teacher
from arkfast.distill.weights import Weights
from arkfast.engine import Decodes, RolloutOptions
from arkfast.models.family import SpeechModel
from arkfast.records import Batch, Rollout, TeacherScores

if TYPE_CHECKING:
    from typing_extensions import Unpack

Phase = Callable[[str], AbstractContextManager[object]]

UNGUARDED = Guards()
GENERATED = ("generated_tokens_mean", "generated_nonempty", "generated_stopped")
END_TOKEN = ("opd_nonterminal_rows", "opd_nonterminal_eos_candidate_rows", "opd_terminal_rows", "opd_terminal_eos_candidate_rows")


def metric_names(stage: str, *, ctc: bool = False, guards: Guards = UNGUARDED) -> tuple[str, ...]:
    """What a step of ``stage`` measures: the names in its ``LossSum.metrics``. ``ctc`` says that the CTC term is on."""
    if stage == "opd":
        lists = ("opd_valid_topk_mean", "opd_overlap_mean", "opd_aligned_share")
        return ("opd_loss", "asr_loss", *lists, *END_TOKEN, *guards.counters, *GENERATED)
    return ("asr_loss", *GENERATED) if stage == "td" else ("asr_loss", *(["ctc_loss"] if ctc else []))


def _untimed(_name: str) -> AbstractContextManager[object]:
    return nullcontext()


def opd_step(
    student: SpeechModel,
    engine: Decodes,
    teacher: Teacher,
    batch: Batch,
    *,
    tau: float,
    objective: Objective = PAPER,
    guards: Guards = UNGUARDED,
    weights: Weights = ALIKE,
    phase: Phase = _untimed,
    **decoding: Unpack[RolloutOptions],
) -> LossSum:
    """On-policy distillation on one batch.

    Args:
        student: the model to train.
        engine: decodes with it.
        teacher: scores what it produced.
        batch: B utterances.
        tau: the loss's temperature.
        objective: which divergence, and on which ids.
        guards: which positions are left out.
        weights: how much each of the others weighs.
        phase: entered by the name of each part of the step, to time it.
        **decoding: goes to ``Engine.rollout``.
    """
    with phase("encode"):
        audio = encoded(student, batch)
    with phase("teacher"):
        begun = teacher.begin(batch)
    with phase("rollout"):
        rollout = engine.rollout(batch, audio=audio, **decoding)
    with phase("teacher"):
        scores = teacher.score(batch, rollout, begun)
        scores, counted = guarded(guards, batch, rollout, scores)
        del begun  # keys and values of every prompt, perhaps: not to be held through the student's pass
    with phase("student_score"):
        loss = opd_loss(
            student,
            batch,
            audio,
            rollout,
            scores,
            tau=tau,
            objective=objective,
            weights=weights,
            blocked=engine.blocked,
            allowed=engine.allowed,
        )
    ends = _end_token_metrics(rollout, scores, engine.stop_ids)
    return _with_rollout_metrics(replace(loss, metrics=loss.metrics | ends | counted, languages=scores.languages), rollout)


def td_step(
    student: SpeechModel, engine: Decodes, teacher: Teacher, batch: Batch, *, max_new_tokens: int, phase: Phase = _untimed
) -> LossSum:
    """Teacher data on one batch: the teacher's own greedy transcripts as labels. ``engine`` gives the ids that have no probability."""
    with phase("teacher"):
        labels = teacher.transcribe(batch, max_new_tokens=max_new_tokens)
    with phase("encode"):
        audio = encoded(student, batch)
    with phase("student_score"):
        loss = cross_entropy_loss(student, batch, audio, labels, engine.blocked, allowed=engine.allowed)
    return _with_rollout_metrics(replace(loss, languages=labels.languages), labels)


def sft_step(
    student: SpeechModel,
    engine: Decodes,
    batch: Batch,
    *,
    ctc_head: CTCHead | None = None,
    ctc_weight: float = 0.0,
    phase: Phase = _untimed,
) -> LossSum:
    """Supervised fine-tuning on one batch of references."""
    with phase("encode"):
        audio = encoded(student, batch)
    with phase("student_score"):
        return cross_entropy_loss(
            student,
            batch,
            audio,
            _whole_references(batch),
            engine.blocked,
            allowed=engine.allowed,
            ctc_head=ctc_head,
            ctc_weight=ctc_weight,
        )


def idle_step(student: SpeechModel, engine: Decodes, batch: Batch, *, stage: str, ctc_head: CTCHead | None = None) -> torch.Tensor:
    """A zero that hangs on every parameter of the student, for a rank that has no batch while the others take a step.

    It does what a step of ``stage`` does with the student, in the same order, so that a sharded student's collectives meet those of the
    other ranks. ``batch`` is anything with a transcript.
    """
    audio = encoded(student, batch)
    if stage == "opd":
        engine.rollout(batch, audio=audio, max_new_tokens=1)
    loss = cross_entropy_loss(
        student, batch, audio, _whole_references(batch), engine.blocked, ctc_head=ctc_head, ctc_weight=float(ctc_head is not None)
    )
    return 0.0 * loss.total


def _whole_references(batch: Batch) -> Rollout:
    """All of a batch's transcripts as if they had been produced."""
    found = references(batch, range(batch.size))
    assert found is not None
    return found


def _end_token_metrics(rollout: Rollout, scores: TeacherScores, stops: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """How many positions end their row, how many do not, and at how many of each an end token is a candidate; sums, so their count is 0."""
    assert rollout.topk_ids is not None
    row, position = rollout.packed_index()
    ends = rollout.stopped[row] & (position == rollout.lens[row] - 1)
    listed = torch.isin(rollout.topk_ids, stops).any(1) | torch.isin(scores.ids, stops).any(1)
    none = torch.zeros((), device=row.device)
    found = (~ends, ~ends & listed, ends, ends & listed)
    return {name: (where.sum().float(), none) for name, where in zip(END_TOKEN, found, strict=True)}


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
