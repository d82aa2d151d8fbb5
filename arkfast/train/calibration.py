"""What ``arkfast calibrate`` measures beyond the look before every run: the student against itself and its teacher, and the cost of steps.

Nothing here changes a weight. It needs the whole student in one process; of a sharded one the rest of the report is printed.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from arkfast.distill.losses import PAPER, opd_loss
from arkfast.distill.prefix import ATTENTIONS, at_predicting_positions_after
from arkfast.distill.sequence import encoded
from arkfast.distill.teachers import Teacher
from arkfast.distill.teachers.direct import Wanted
from arkfast.engine.prefill import prefill
from arkfast.records import Batch, Rollout, TeacherScores
from arkfast.train.config import TrainConfig
from arkfast.train.gates import percent
from arkfast.train.models import Learner
from arkfast.train.objective import decoding_of, objective_of, reports_of
from arkfast.train.preflight import Start

SELF_LOSS = 1e-3
"""Largest loss of a student that is its own teacher, in nats a position: both scores are the same but for rounding."""
SELF_GRADIENT = 0.02
"""Largest gradient of the same, as a share of the gradient under its teacher."""
ADAM_BYTES = 8
"""Of a trained weight's two moments, which are there from the first step on."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Means over the batches looked at."""

    self_loss: float
    """Of the student as its own teacher, nats a position."""
    self_gradient: float
    """The norm of its gradient over that under the teacher."""
    teacher_mass: float
    """Of the teacher's probability on its own top-k, the share on ids that the student lists too."""
    student_mass: float
    """The same the other way round."""
    entropy: float
    """Of the teacher on its own top-k, in nats."""
    seconds: float
    """A micro-batch takes, forward and backward."""
    peak_bytes: int
    """Highest memory of the device so far, of the process where there is no GPU, with AdamW's moments."""

    def refusals(self) -> list[str]:
        """The findings that speak against this start."""
        if self.self_loss <= SELF_LOSS and self.self_gradient <= SELF_GRADIENT:
            return []
        return [
            f"the student as its own teacher has loss {self.self_loss:.2g} and {percent(self.self_gradient)} of its teacher's gradient, "
            "where both should be 0: scores and loss do not look at the same positions; try --student_attn_implementation eager and report "
            "this"
        ]


def own_scores(config: TrainConfig, learner: Learner, batch: Batch, rollout: Rollout) -> TeacherScores:
    """What the student says of its own rollout when it is asked as a teacher is: prompts first, then the tokens after them."""
    engine, model = learner.engine, learner.model
    ranges = engine.allowed.row_ranges(rollout.packed_index()[1])
    prefix = prefill(model, batch.input_ids, batch.prompt_lens, encoded(model, batch))
    wanted = Wanted(top_k=learner.top_k, **reports_of(config))
    found: TeacherScores = at_predicting_positions_after(
        model, prefix, rollout, lambda hidden, weight: wanted.at(hidden, weight, rollout, blocked=engine.blocked, ranges=ranges)
    )
    return found


def calibrate(config: TrainConfig, learner: Learner, teacher: Teacher | None, batches: Sequence[Batch | None]) -> Calibration | None:
    """Measure on batches in main memory; None where there is nothing to measure so: another stage, a sharded student, an attention that
    cannot continue prompts."""
    device = next(iter(learner.model.parameters())).device
    if teacher is None or config.stage != "opd" or learner.sharded or learner.model.config._attn_implementation not in ATTENTIONS:
        return None
    positions, sums, seconds = 0, dict.fromkeys(("loss", "teacher", "student", "entropy"), 0.0), []
    own, theirs = 0.0, 0.0
    for batch in batches:
        if batch is None:
            continue
        moved, begun = batch.to(device), _now(device)
        rollout = _rollout(config, learner, moved)
        scores = teacher.score(moved, rollout)
        theirs += _gradient(config, learner, moved, rollout, scores)[1]
        seconds.append(_now(device) - begun)
        with torch.no_grad():
            mine = own_scores(config, learner, moved, rollout)
            teacher_mass, student_mass, entropy, counted = _masses(scores, mine)
        loss, norm = _gradient(config, learner, moved, rollout, mine)
        own, positions = own + norm, positions + counted
        found = {"loss": loss * counted, "teacher": teacher_mass, "student": student_mass, "entropy": entropy}
        sums = {name: value + found[name] for name, value in sums.items()}
    if not positions:
        return None
    trained = sum(parameter.numel() for _, parameter in learner.student.parameters if parameter.requires_grad)
    return Calibration(
        self_loss=abs(sums["loss"]) / positions,
        self_gradient=own / theirs if theirs else 0.0,
        teacher_mass=sums["teacher"] / positions,
        student_mass=sums["student"] / positions,
        entropy=sums["entropy"] / positions,
        seconds=statistics.median(seconds[1:] or seconds),  # the first pays for warming up
        peak_bytes=_peak(device) + ADAM_BYTES * trained,
    )


def _rollout(config: TrainConfig, learner: Learner, batch: Batch) -> Rollout:
    with torch.no_grad():
        return learner.engine.rollout(batch, **decoding_of(config, step=0))  # as the first step draws


def _gradient(config: TrainConfig, learner: Learner, batch: Batch, rollout: Rollout, scores: TeacherScores) -> tuple[float, float]:
    """(mean loss, norm of the summed loss's gradient); the gradient is thrown away."""
    with torch.enable_grad():
        loss = opd_loss(
            learner.model,
            batch,
            encoded(learner.model, batch),
            rollout,
            scores,
            tau=config.opd_temperature,
            # A fixed advantage is none of the teacher's, so of a student that is its own teacher it proves nothing. An estimate from
            # single tokens is off by as much as scores are rounded, where a divergence is off by its square.
            objective=objective_of(config) if config.opd_objective == "divergence" else PAPER,
            blocked=learner.engine.blocked,
            allowed=learner.engine.allowed,
        )
        loss.total.backward()
    gradients = [p.grad for _, p in learner.student.parameters if p.grad is not None]
    norm = float(torch.stack(torch._foreach_norm(gradients)).double().norm()) if gradients else 0.0
    for _, parameter in learner.student.parameters:
        parameter.grad = None
    return float(loss.total) / max(float(loss.count), 1.0), norm


def _masses(scores: TeacherScores, mine: TeacherScores) -> tuple[float, float, float, int]:
    """Summed over the positions that the teacher scored: each side's probability on what both list, the teacher's entropy, how many."""
    counted = scores.valid & mine.valid
    theirs, ours = scores.ids[counted], mine.ids[counted]
    both = (theirs[:, :, None] == ours[:, None, :]) & (theirs >= 0)[:, :, None]
    p, q = scores.scores[counted].float().softmax(1), mine.scores[counted].float().softmax(1)
    entropy = -torch.special.xlogy(p, p).sum()
    return float((p * both.any(2)).sum()), float((q * both.any(1)).sum()), float(entropy), int(counted.sum())


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows counts otherwise
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def report(
    config: TrainConfig, start: Start, found: Calibration | None, *, measured: Mapping[str, float], steps: int, rounds: int
) -> list[tuple[str, str]]:
    """(what, value) lines of the report.

    Args:
        config: the run's.
        start: its look at the first batches.
        found: more of them, or None.
        measured: a step's numbers of the same batches.
        steps: optimizer steps of the run.
        rounds: micro-batches of a process in a step.
    """
    audit = start.audit
    lines = [(f"check: {check.name}", ("FAILED: " if check.failed else "") + check.text) for check in start.checks]
    lines += [
        ("clips looked at", str(audit.rows)),
        ("digital silence", str(len(audit.silent))),
        ("prompts with misplaced audio", str(len(audit.misplaced))),
        ("prompts with unknown ids", str(len(audit.out_of_range))),
        ("texts that do not come back from the tokenizer", f"{len(audit.unwritable)} of {audit.texts}"),
    ]
    if config.stage == "opd":
        lines += [
            ("rollouts that did not end", percent(1.0 - measured["generated_stopped"])),
            ("rollouts of the end token alone", percent(1.0 - measured["generated_nonempty"])),
            *_support(config, measured["opd_valid_topk_mean"], start.top_k),
            ("overlap of the lists by count", percent(measured["opd_overlap_mean"] / start.top_k)),
            ("references longer than an answer may be", percent(start.cut_references)),
        ]
        if start.reference_len:
            ratio = measured["generated_tokens_mean"] / start.reference_len
            lines.append(("rollout length over reference length", f"{ratio:.2f}"))
        if start.reference_loss is not None:
            lines.append(("references under the student", f"{start.reference_loss:.2f} nats an id (chance: {start.chance:.2f})"))
        if start.dev_wer is not None:
            lines.append(("WER on a sample of --eval_data", f"{start.dev_wer:.1f} %"))
        if start.ctc_wer is not None:
            lines.append(("WER of the student's CTC head", f"{start.ctc_wer:.1f} %"))
    return lines + (_measured(found, steps, rounds) if found else _unmeasured(config))


def _support(config: TrainConfig, ids: float, top_k: int) -> list[tuple[str, str]]:
    """On how many ids a position's distributions are compared; nothing where none are."""
    if config.opd_objective != "divergence":
        return []
    if config.support != "union":
        return [(f"ids of --support {config.support}", f"{ids:.1f}")]
    return [("union of the top-k lists (VUSS)", f"{ids:.1f} ids of {2 * top_k}")]


def _measured(found: Calibration, steps: int, rounds: int) -> list[tuple[str, str]]:
    seconds = rounds * found.seconds
    return [
        ("student as its own teacher", f"loss {found.self_loss:.2g}, gradient {percent(found.self_gradient)} of its teacher's"),
        ("overlap by mass", f"{percent(found.teacher_mass)} of the teacher's, {percent(found.student_mass)} of the student's"),
        ("teacher's entropy on its list", f"{found.entropy:.2f} nats"),
        ("memory", f"{found.peak_bytes / 2**30:.2f} GiB with AdamW's moments" if found.peak_bytes else "not known here"),
        ("time, without the optimizer", f"{seconds:.3g} s a step, {steps} steps, {steps * seconds / 3600:.3g} hours"),
    ]


def _unmeasured(config: TrainConfig) -> list[tuple[str, str]]:
    if config.stage != "opd":
        return []
    return [("itself as teacher, mass, cost", "not measured: that takes one process without --sharding, attention sdpa or eager")]
