"""The line that a step leaves in the log.

What is measured of a step has its names here, and bad rows of all ranks are judged together. A step is measured when it has been handed to
the device, and read after the next one has: the host never waits for the step it has just begun.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch

from arkfast.data.bad_audio import BadAudioLimit
from arkfast.distill import LossSum, metric_names
from arkfast.distill.languages import COUNTED, counted, names_a_reference
from arkfast.engine.readback import Readback
from arkfast.models.family import Cost
from arkfast.records import Batch, InputError, JsonObject
from arkfast.train.checkpoints.run_folder import TrainerState
from arkfast.train.config import TrainConfig
from arkfast.train.logging.phase_table import STEP
from arkfast.train.logging.phases import Phases
from arkfast.train.logging.step_metrics import StepMetrics
from arkfast.train.objective import guards_of
from arkfast.train.optim import StepResult
from arkfast.train.parallel import Parallel
from arkfast.train.stop import SIGNALS, asked_for
from arkfast.train.throughput import peak, step_operations

SUMS = ("audio_seconds", "tokens", "operations", "bad_rows", "generated_rows")
"""Host numbers of a step that are added up over the ranks."""
_TOLD = "teacher_language "
"""Before the names of languages, which are such numbers too."""


class Pending(NamedTuple):
    """A step that was handed to the device, as it is kept until it is read."""

    numbers: Readback
    """[4 + signals + 2 · metrics]: loss, norm, count, how many ranks are to stop by which signal, this rank's count, its packed metrics."""
    phases: Phases
    batches: list[Batch]
    """This rank's."""
    bad: list[str]
    """Why rows of this rank's could not be used."""
    languages: Counter[str]
    """What the teacher was told of this rank's rows."""


class Measured(NamedTuple):
    """A step that the device is past."""

    result: StepResult
    """Of all ranks."""
    stop: int
    """The signal by which any rank had been told to stop; 0: none."""
    positions: float
    """This rank's counting positions."""
    metrics: list[float]
    """This rank's, as ``StepMetrics.pack`` lays them out."""
    seconds: dict[str, float]
    """By the names of ``phase_table``, this rank's."""
    batches: list[Batch]
    """This rank's."""
    languages: Counter[str]
    """What the teacher was told of this rank's rows."""


class Recorder:
    """Measures steps and writes their records.

    Args:
        config: what is trained and how often it is logged.
        parallel: the processes.
        rows: of an epoch.
        student: the arithmetic of its passes.
        teacher: the same, or None.
        phases: the step's clocks.
    """

    def __init__(self, config: TrainConfig, parallel: Parallel, *, rows: int, student: Cost, teacher: Cost | None, phases: Phases) -> None:
        self._config, self._parallel, self._rows, self.phases = config, parallel, rows, phases
        self._metrics = StepMetrics(
            metric_names(config.stage, ctc=bool(config.ctc_weight), guards=guards_of(config)),
            (*SUMS, *(_TOLD + name for name in COUNTED)),
            parallel,
        )
        self._student, self._teacher = student, teacher if config.stage == "opd" else None
        self._peak = peak(parallel.device)
        self._limit = BadAudioLimit(config.on_bad_audio, rows=rows)
        self._bad: list[str] = []
        self._unreported: list[str] = []
        self.bad_rows = 0
        """Of all ranks, since the run began, as far as they were judged; a resume sets it."""
        self.begin()

    def begin(self) -> None:
        """A step begins."""
        self._batches: list[Batch] = []

    def saw(self, batch: Batch) -> None:
        """A batch of this rank's, still in main memory."""
        self._batches.append(batch)

    def passed_over(self, error: str) -> None:
        """A row of this rank's that could not be used."""
        self._bad.append(error)

    def take_bad(self) -> list[str]:
        """Why rows of this rank's could not be used since the last step, which then does not count them."""
        bad, self._bad = self._bad, []
        return bad

    def forget(self) -> None:
        """Drop what was measured since the last step: it belongs to no step."""
        self.begin()
        self.take_bad()
        self.phases.cut()

    def measure(self, sums: Sequence[LossSum], result: torch.Tensor, stop: torch.Tensor) -> Pending:
        """Set aside what is known of the step so far; nothing here waits for the device.

        Args:
            sums: of this rank's micro-batches.
            result: [3], the fields of ``StepResult``.
            stop: [signals], how many ranks were told to stop by each.
        """
        none = torch.zeros((), device=self._parallel.device)
        positions = torch.stack([loss.positions for loss in sums] or [none]).sum()
        numbers = torch.cat([result.double(), stop.double(), positions.double().reshape(1), self._metrics.pack(sums)])
        languages = counted(name for loss in sums for name in loss.languages)
        return Pending(Readback(numbers), self.phases.cut(), self._batches, self.take_bad(), languages)

    def read(self, step: Pending) -> Measured:
        """Wait until the device is past a step. Each is read once, in order."""
        loss, norm, count, *rest = step.numbers.tolist()
        stop, (positions, *metrics) = asked_for(rest[: len(SIGNALS)]), rest[len(SIGNALS) :]
        self._unreported += step.bad
        return Measured(StepResult(loss, norm, count), stop, positions, metrics, step.phases.take(), step.batches, step.languages)

    def totals(self, step: Measured) -> dict[str, float]:
        """What a step measured over all ranks, which all call it."""
        own = {
            "audio_seconds": sum(batch.seconds for batch in step.batches),
            "bad_rows": float(len(self._unreported)),
            "generated_rows": float(self._config.rollouts_per_prompt * sum(batch.size for batch in step.batches)),
        }
        told = {_TOLD + name: float(step.languages[name]) for name in COUNTED}
        work = self._work(step.batches, step.positions)
        measured = self._metrics.total(step.metrics, step.positions, own | told | work, step.seconds)
        seconds = step.seconds[STEP.name]
        operations, rollouts = measured.pop("operations"), int(measured.pop("generated_rows"))
        if self._config.stage == "opd":
            measured["generated_rows"] = rollouts
            if not any(measured[_TOLD + name] for name in COUNTED if names_a_reference(name)):
                measured.pop("asr_loss")  # nothing was learnt by a reference; a loss of 0 would say that it was, and perfectly
        measured["audio_seconds"] = round(measured["audio_seconds"], 2)
        measured["tokens"] = int(measured["tokens"])
        measured["audio_seconds_per_second"] = round(measured["audio_seconds"] / seconds, 2)
        measured["tokens_per_second"] = round(measured["tokens"] / seconds, 1)
        if self._peak is not None:
            measured["mfu"] = round(operations / seconds / (self._peak * self._parallel.world), 4)
        return measured

    def _work(self, batches: Sequence[Batch], answers: float) -> dict[str, float]:
        """Tokens that the student's loss ran over and operations of all passes, ``answers`` shared evenly among the batches."""
        n = self._config.rollouts_per_prompt
        tokens = operations = 0.0
        for batch in batches:
            share = answers / len(batches)
            tokens += n * float(batch.prompt_lens.sum()) + share
            operations += step_operations(batch, share, rollouts=n, student=self._student, teacher=self._teacher)
        return {"tokens": tokens, "operations": operations}

    def record(self, state: TrainerState, step: Measured, lr: float, *, whole: bool = False) -> JsonObject:
        """A step's record. Over several ranks only every ``log_freq``-th is measured in full, which takes one all-reduce.

        Args:
            state: where the run stood after the step.
            step: what was measured of it.
            lr: the step's learning rate.
            whole: measure it in full in any case, so that no bad row stays unjudged; the same on every rank.

        Raises:
            InputError: more rows are bad than ``--on_bad_audio`` allows.
        """
        config, result = self._config, step.result
        line: JsonObject = {"step": state.step, "epoch": state.cursor / self._rows, "stage": config.stage, "loss": result.loss}
        bad = 0
        if whole or self._parallel.world == 1 or state.step % config.log_freq == 0:
            measured = self.totals(step)
            bad = int(measured.pop("bad_rows"))
            if languages := {name: int(number) for name in COUNTED if (number := measured.pop(_TOLD + name))}:
                line["teacher_language_counts"] = languages
            line |= measured
        line |= {"positions": int(result.positions), "grad_norm": result.norm, "lr": lr, "skipped": not result.finite}
        if config.stage != "sft":
            line["teacher_backend"] = config.teacher_backend
        line[STEP.logged] = round(step.seconds[STEP.name], 4)
        if bad:
            line["bad_audio"] = self.judge(self._unreported, state.cursor)
            self._unreported = []
            self.bad_rows += bad
        return line

    def judge(self, own: Sequence[str], cursor: int) -> list[str]:
        """Apply the limit here, where the rows of all ranks and those from before a resume are known; every rank calls it.

        Args:
            own: why rows of this rank's could not be used, of those that ``bad_rows`` does not count yet.
            cursor: where the data stands after them.

        Returns:
            Those of all ranks.

        Raises:
            InputError: more rows are bad than ``--on_bad_audio`` allows.
        """
        found: list[str] = [text for texts in self._parallel.gather(list(own)) for text in texts]
        bad = self.bad_rows + len(found)
        if found and self._limit.passed(bad, cursor):
            raise InputError(f"{bad} clips so far are bad, over the limit of {self._limit.rule}; the last: {found[-1]}")
        return found
