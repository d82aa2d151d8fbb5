"""A look before the first step: does the loss come out as a number, is there anything to learn from, and can the start work?

Nothing is learnt from what it looks at. The limits stand in ``gates``; ``audit`` describes the samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from arkfast.audio import LogMel
from arkfast.distill import CTCHead, idle_step, sft_step
from arkfast.distill.sequence import encoded
from arkfast.models.family import SpeechModel
from arkfast.records import Batch, Utterance
from arkfast.train.audit import Audit, reference_lens, with_references
from arkfast.train.checkpoints.tensors import STATE, read_state
from arkfast.train.checks import Check, interface_checks
from arkfast.train.config import TrainConfig
from arkfast.train.evaluation import DevSet
from arkfast.train.feed import Rows
from arkfast.train.gates import EMPTY, exceeds, percent
from arkfast.train.parallel import Parallel

if TYPE_CHECKING:
    from arkfast.train.models import Learner

LOGGED = {
    "initial/asr_loss_mean": "asr_loss",
    "initial/opd_loss_mean": "opd_loss",
    "initial/generated_nonempty_ratio": "generated_nonempty",
    "initial/generated_tokens_mean": "generated_tokens_mean",
}
"""The original's names of what it reports, by the step's."""
CTC_MARGIN = 5.0
"""By how many points of WER a decoder may be worse than its own CTC head: of a sample, they are not told apart more finely."""
DEV_SAMPLE = 100
"""Utterances of the evaluation manifest on which a start's error rate is measured."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run begins with, over all ranks."""

    measured: Mapping[str, float]
    """What a step measures, of the batches looked at."""
    audit: Audit
    checks: Sequence[Check]
    cut_references: float
    """The share of references that are longer than an answer may be."""
    reference_len: float | None
    """Mean ids of the references of the batches looked at; None where they have none."""
    reference_loss: float | None
    """Mean negative log-likelihood of a reference's id, in nats; None where there are none, or where nobody asks."""
    chance: float
    """What that is for a model that holds every allowed id for equally likely."""
    dev_wer: float | None
    """In percent, on a sample; None where it was not measured."""
    ctc_wer: float | None
    """What the CTC head that the student was trained with makes of the same sample; None where there is none."""
    top_k: int


def summary(measured: Mapping[str, float], start: Start | None = None, *, positions: float) -> dict[str, float]:
    """What the preflight found, under the original's names where it has them."""
    found = {name: measured[ours] for name, ours in LOGGED.items() if ours in measured}
    if start is not None and start.reference_loss is not None:
        found["initial/asr_loss_mean"] = start.reference_loss
    return {"positions": int(positions), "audio_seconds": measured["audio_seconds"], **found}


def verdict(loss: float, positions: float, bad: Sequence[str] = (), *, rule: str = "fail") -> str | None:
    """Why a run must not start, or None.

    Args:
        loss: mean over the counting positions.
        positions: how many counted.
        bad: why rows among those looked at could not be used.
        rule: ``--on_bad_audio``, which let them pass.
    """
    if positions == 0 and bad:
        return (
            f"no position counts, and --on_bad_audio {rule} passed over {len(bad)} of the clips looked at, the last: {bad[-1]}; "
            "mend them, or look at more with --calibration_batches"
        )
    if positions == 0:
        return "no position counts, so there is nothing to learn from: look at the audio and at what the teacher can score"
    if not math.isfinite(loss):
        return f"the loss is {loss} before any step: look at the checkpoints' weights and at --model_dtype"
    return None


def refusals(config: TrainConfig, start: Start) -> list[str]:
    """Why a start cannot work, each reason with its cause and what to do; empty where it can."""
    found = [check.text for check in start.checks if check.failed]
    found += _samples(start.audit)
    return found + _opd(config, start) if config.stage == "opd" else found


def _samples(audit: Audit) -> list[str]:
    found, rows = [], audit.rows
    if audit.silent and (len(audit.silent) == rows or exceeds(len(audit.silent), rows, EMPTY)):
        found.append(
            f"silent manifest: {len(audit.silent)} of the {rows} clips looked at are digital silence (the first: {audit.silent[0]}); "
            "look at the recordings that --train_data names"
        )
    if audit.misplaced:
        found.append(
            f"wrong prompt: {len(audit.misplaced)} of {rows} have another number of placeholders than audio embeddings (the first: "
            f"{audit.misplaced[0]}); look at the student's processor files"
        )
    if audit.out_of_range:
        found.append(f"wrong prompt: {len(audit.out_of_range)} of {rows} hold ids that the model does not have; swapped tokenizer?")
    if len(audit.unwritable) > audit.texts / 2:
        found.append(
            f"swapped tokenizer: {len(audit.unwritable)} of {audit.texts} texts do not come back from the student's tokenizer (the first: "
            f"{audit.unwritable[0]}); give the one that the model was trained with"
        )
    return found


def _opd(config: TrainConfig, start: Start) -> list[str]:
    """What on-policy distillation asks besides: a student that its teacher knows."""
    found, measured = [], start.measured
    rollouts = int(measured["generated_rows"])
    unfinished = round((1.0 - measured["generated_stopped"]) * rollouts)
    empty = round((1.0 - measured["generated_nonempty"]) * rollouts)
    cheaper = "run --stage sft or --stage td first"
    if start.reference_loss is not None and start.reference_loss >= start.chance:
        found.append(
            f"the student holds the references for less likely than chance ({start.reference_loss:.2f} nats an id, chance is "
            f"{start.chance:.2f}): swapped tokenizer, wrong prompt or an untrained model; give the tokenizer and the prompt that it was "
            f"trained with, or {cheaper}"
        )
    if exceeds(empty, rollouts, EMPTY):
        found.append(f"the student writes nothing but the end token in {empty} of {rollouts} rollouts; {cheaper}")
    if config.gate_unfinished and exceeds(unfinished, rollouts, config.gate_unfinished + start.cut_references):
        more = f"; {percent(start.cut_references)} of references are longer than that" if start.cut_references else ""
        found.append(
            f"{unfinished} of {rollouts} rollouts do not end within --asr_opd_max_new_tokens {config.asr_opd_max_new_tokens} "
            f"(--gate_unfinished {config.gate_unfinished:g}{more}); {cheaper}"
        )
    overlap = measured["opd_overlap_mean"] / start.top_k
    if overlap < config.gate_overlap:
        found.append(
            f"student and teacher have {percent(overlap)} of their top-{start.top_k} ids in common (--gate_overlap "
            f"{config.gate_overlap:g}), so that the loss teaches little and rollouts may run away: {cheaper}, or look whether the "
            "teacher's prompt and tokenizer are its own"
        )
    if start.dev_wer is not None and start.dev_wer > config.gate_dev_wer:
        found.append(f"the student's WER on --eval_data is {start.dev_wer:.1f} (--gate_dev_wer {config.gate_dev_wer:g}); {cheaper}")
    if start.dev_wer is not None and start.ctc_wer is not None and start.dev_wer > start.ctc_wer + CTC_MARGIN:
        found.append(
            f"the student's decoder has WER {start.dev_wer:.1f} on --eval_data, its own CTC head {start.ctc_wer:.1f}: it does not "
            "write yet what it hears; run --stage sft longer first"
        )
    return found


class Preflight:
    """Looks at a run's first batches beyond their loss; every rank makes one and calls it equally often.

    Args:
        config: the run's.
        parallel: the processes.
        learner: the student.
        rows: to train and to measure on.
        log_mel: features; None: the task hears nothing.
    """

    def __init__(self, config: TrainConfig, parallel: Parallel, learner: Learner, rows: Rows, log_mel: LogMel | None) -> None:
        self._config, self._parallel, self._learner, self._rows, self._log_mel = config, parallel, learner, rows, log_mel
        self.cut_references = 0.0
        """The share of references that ``--asr_opd_max_new_tokens`` cuts, of a sample."""
        if config.stage == "opd" and config.gates != "off":
            lens = reference_lens(rows.train, learner.task, learner.interface)
            self.cut_references = sum(n > config.asr_opd_max_new_tokens for n in lens) / len(lens) if lens else 0.0

    @torch.no_grad()
    def look(self, batches: Sequence[Batch | None], measured: Mapping[str, float]) -> Start:
        """Look at batches that a step has run on, None where this rank had nothing to do.

        Args:
            batches: this rank's, in main memory; all ranks have equally many.
            measured: what the recorder said of them.
        """
        config, learner = self._config, self._learner
        audio, size = learner.model.audio_input if learner.task.hears else None, int(learner.model.config.vocab_size)
        own = Audit()
        for batch in batches:
            if batch is not None:
                own.add(batch, audio, learner.interface.tokenizer, size)
        asked = config.stage == "opd"
        loss, count, rows = self._reference_loss(batches) if asked else (0.0, 0.0, 0.0)
        dev_wer, ctc_wer = self._dev_wers() if asked else (None, None)
        return Start(
            measured=measured,
            audit=Audit.of_all(self._parallel.gather(own)),
            checks=interface_checks(learner.interface, config.task, audio, size, learner.folder, "--student_model"),
            cut_references=self.cut_references,
            reference_len=count / rows if rows else None,
            reference_loss=loss / count if count else None,
            chance=math.log(learner.allowed.count),
            dev_wer=dev_wer,
            ctc_wer=ctc_wer,
            top_k=learner.top_k,
        )

    def _reference_loss(self, batches: Sequence[Batch | None]) -> tuple[float, float, float]:
        """(summed loss, ids, rows) of the references under the student, over all ranks."""
        learner, device = self._learner, self._parallel.device
        wanted = {name for batch in batches if batch is not None for name in batch.ids}
        rows: dict[str, Utterance] = {row.id: row for row in self._rows.train if row.id in wanted}
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        for batch in batches:
            whole = None
            if batch is not None:
                whole = with_references(batch, [rows[name] for name in batch.ids], learner.task, learner.interface)
            if batch is not None and whole is not None:
                moved = replace(whole, teacher_inputs={}).to(device)
                loss = learner.student.inside(partial(sft_step, learner.model, learner.engine, moved))
                sums += torch.stack([loss.total.double(), loss.count.double(), loss.count.new_tensor(batch.size).double()])
            elif learner.sharded:
                idle = learner.idle_batch().to(device)
                learner.student.inside(partial(idle_step, learner.model, learner.engine, idle, stage="sft"))
        total, count, measured_rows = self._parallel.total(sums).tolist()
        return total, count, measured_rows

    def _dev_wers(self) -> tuple[float | None, float | None]:
        """The error rates of the student and of its CTC head on a sample of the evaluation manifest, in percent; None where no limit asks
        for it, or there is no head."""
        config, learner, dev = self._config, self._learner, self._rows.dev
        if not dev or not config.gate_dev_wer or learner.task.rate != "wer":
            return None, None
        n = min(DEV_SAMPLE, len(dev))
        rows = [dev[i * len(dev) // n] for i in range(n)]
        sample = DevSet(rows, config, self._parallel, self._log_mel, learner.task, learner.interface)
        head = trained_head(learner.folder, learner.model, learner.interface.tokenizer.pad_token_id, self._parallel.device)

        def heard(head: CTCHead, batch: Batch) -> list[list[int]]:
            audio = encoded(learner.model, batch)
            assert audio is not None, "a head was trained, so something is heard"
            return head.transcribe(audio)

        def measure() -> tuple[float | None, float | None]:
            with learner.student.whole():
                record = sample.measure(learner.model, learner.allowed)
                assert record is not None, "nothing stops it"
                own: float | None = record[f"eval_{learner.task.rate}"]
                return own, None if head is None else sample.rate_of(partial(heard, head))

        return learner.student.inside(measure)


def trained_head(folder: Path, model: SpeechModel, blank: int | None, device: torch.device) -> CTCHead | None:
    """The CTC head that a run of stage sft trained with the model, where the folder is one of its checkpoints, which keep it."""
    if blank is None or not (folder / STATE).is_file():
        return None
    size = model.config
    head = CTCHead(size.hidden_size, size.vocab_size, blank, seed=0)
    blanks = {f"master/ctc_head.{name}": torch.zeros_like(parameter.detach()) for name, parameter in head.named_parameters()}
    saved = read_state(folder, blanks, None)
    if saved.keys() != blanks.keys():
        return None
    head.load_state_dict({name.removeprefix("master/ctc_head."): value for name, value in saved.items()})
    return head.to(device)
