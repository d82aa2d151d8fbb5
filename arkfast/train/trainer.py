"""The training loop: micro-batches to a step, steps to a run.

What a step computes stands in ``distill.step``, what a checkpoint holds in ``checkpoints``, which process does what in ``parallel``. A
run's losses depend on its seed, its data, its weights and the micro-batches of a step alone: no generator carries a state from one step to
the next, so a killed run that is resumed repeats what an uninterrupted one does, on any number of processes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch

from arkfast.audio import LogMel
from arkfast.data import FeatureItem
from arkfast.data.dealer import Window
from arkfast.distill import LossSum, idle_step, opd_step, sft_step, td_step
from arkfast.files import json_text
from arkfast.kernels import reset_usage
from arkfast.records import Batch, InputError, JsonObject, Utterance
from arkfast.train.calibration import calibrate, report
from arkfast.train.checkpoints.export import write_model
from arkfast.train.checkpoints.opening import find_run, open_run
from arkfast.train.checkpoints.run_folder import TrainerState
from arkfast.train.checkpoints.run_lock import RunLock
from arkfast.train.checkpoints.saver import Saver
from arkfast.train.checkpoints.tensors import read_state
from arkfast.train.config import TrainConfig, profiled_steps
from arkfast.train.evaluation import DevSet
from arkfast.train.feed import Feed, batch_of, read_rows, targets_of
from arkfast.train.gates import Watch
from arkfast.train.logging.last_words import say_last_words
from arkfast.train.logging.phases import Phases
from arkfast.train.logging.profiler import StepProfiler
from arkfast.train.logging.recorder import Pending, Recorder
from arkfast.train.logging.run_log import RunLog
from arkfast.train.models import Learner, is_sharded, load_models
from arkfast.train.objective import decoding_of, guards_of, objective_of, weights_of
from arkfast.train.optim import learning_rate
from arkfast.train.parallel import Parallel
from arkfast.train.paths import check_paths
from arkfast.train.preflight import Preflight, Start, refusals, summary, verdict
from arkfast.train.recheck import jumped, loss_again
from arkfast.train.repositories import with_folders
from arkfast.train.stop import Interrupted, StopRequest

Windows = Iterator[tuple[Window, Iterator[Batch | None]]]
AWAY = "begin again from a better student (--stage td first), lower --learning_rate or raise --asr_opd_max_new_tokens"


class TrainingStopped(RuntimeError):
    """The run cannot go on; the message says why and what to look at."""


class Trainer:
    """A run, ready to go. Everything that can be wrong with its inputs is found here, before the first step.

    Args:
        config: what to train.

    Raises:
        InputError: with the flag or the file and line that is wrong; on rank 0, the other ranks exit with it.
    """

    def __init__(self, config: TrainConfig) -> None:
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        self.config = config
        self.parallel = Parallel(config.device, timeout=config.distributed_timeout, deterministic=config.deterministic)
        with self.parallel.agreeing():
            check_paths(config)
        self._lock = RunLock(config, self.parallel)
        with self._lock.unless_it_fails():
            self._set_up(config, self.parallel)

    def _set_up(self, config: TrainConfig, parallel: Parallel) -> None:
        sharded = is_sharded(config, parallel)
        self._rows = read_rows(config, parallel)
        local, commits = with_folders(config, parallel)
        found = find_run(config, parallel, self._rows, local, commits)
        loaded = parallel.agree(lambda: load_models(local, parallel, sharded=sharded))
        self._stop = StopRequest(parallel)
        self.learner = learner = Learner(loaded, parallel, self._stop.total)
        self._teacher, self.model, self.optimizer, self.engine = loaded.value.teacher, learner.model, learner.optimizer, learner.engine
        log_mel = None if learner.n_mels is None else LogMel(learner.n_mels)
        dev = self._rows.dev
        self._dev = DevSet(dev, config, parallel, log_mel, learner.task, learner.interface) if dev else None
        self._prepare = None if self._teacher is None else self._teacher.prepare
        self._feed = Feed(
            self._rows, config, parallel, log_mel, self._prepare, self._make_batch, self._pass_over, lambda t: self._log.warn(t)
        )
        self._phases = Phases(parallel.device)
        self._recorder = Recorder(
            config,
            parallel,
            rows=len(self._rows.train),
            student=learner.family.cost(learner.model),
            teacher=None if self._teacher is None else self._teacher.cost,
            phases=self._phases,
        )
        folder, self._state, self._notes = open_run(found, config, parallel, self._feed, self._load)
        self.total_steps = self._feed.total_steps(self._state.step, self._state.cursor)
        self._saved = self._state.step or None
        """The last step that is saved."""
        if self._dev and self._state.best_dev not in (None, self._dev.digest):
            self._state = replace(self._state, best_wer=None, best_step=None, best_dev=None)
            self._notes.append("--eval_data: other rows than the lowest WER was measured on; the next evaluation's model is the best")
        self._saver = Saver(folder, parallel, sharded=learner.sharded, background=config.async_save)
        self._recorder.bad_rows = self._state.bad_rows
        self._look = Preflight(config, parallel, learner, self._rows, log_mel)
        self._watch = Watch(config, cut_references=self._look.cut_references, window=self._state.unfinished)
        self._away: str | None = None
        """Why the run must not go on, once its rollouts have run away."""
        self._log = RunLog.of_run(
            config,
            silent=not parallel.is_first,
            start_step=self._state.step,
            evaluate_again=self._state.evaluation_due and self._dev is not None,
            total_steps=self.total_steps,
        )
        self._unread: tuple[TrainerState, Pending, float] | None = None
        self._stopping = 0
        """The signal by which any rank was told to stop."""

    def _load(self, checkpoint: Path) -> None:
        self.optimizer.load_state(read_state(checkpoint, self.optimizer.blank(), self.parallel.checkpoint_group))

    def _pass_over(self, _row: Utterance, error: InputError) -> None:
        """Say at once which row a batch goes without; the step's record lists it too."""
        self._recorder.passed_over(str(error))
        self._log.warn(f"--on_bad_audio {self.config.on_bad_audio}: passed over {error}")

    def _make_batch(self, items: Sequence[FeatureItem]) -> Batch:
        learner = self.learner
        targets = targets_of(self.config, learner.task, learner.interface)
        prepared, pinned = self._prepare is not None, self.parallel.device.type == "cuda"
        return batch_of(items, learner.prompt, hears=learner.n_mels is not None, prepared=prepared, targets=targets, pinned=pinned)

    def _loss(self, batch: Batch) -> LossSum:
        config, learner, phase = self.config, self.learner, self._phases
        if config.stage == "sft":
            return sft_step(self.model, self.engine, batch, ctc_head=learner.ctc_head, ctc_weight=config.ctc_weight, phase=phase)
        assert self._teacher is not None
        if config.stage == "td":
            return td_step(self.model, self.engine, self._teacher, batch, max_new_tokens=config.asr_opd_max_new_tokens, phase=phase)
        return opd_step(
            self.model,
            self.engine,
            self._teacher,
            batch,
            tau=config.opd_temperature,
            objective=objective_of(config),
            guards=guards_of(config),
            weights=weights_of(config),
            phase=phase,
            **decoding_of(config, step=self._state.step),
        )

    def run(self) -> TrainerState:
        """Train to the end; returns where the run stands. Progress goes to standard error, one JSON object a step to standard output.

        Raises:
            TrainingStopped: too many steps in a row met numbers that are not finite, the start cannot work, or rollouts run away.
            InputError: something cannot be written, on a full disk say; what was written before stays.
            Interrupted: a signal told the run to stop; the step was finished and a checkpoint written.
        """
        with ExitStack() as stack:
            stack.callback(self._lock.release)
            stack.enter_context(self.parallel.failing_together())
            stack.enter_context(self._log)
            stack.enter_context(self._stop)
            stack.callback(self._saver.close)
            if self._teacher is not None:
                stack.callback(self._teacher.close)
            self._recheck()
            windows: Windows = stack.enter_context(closing(self._feed.windows(self._state.cursor)))
            if self.config.calibration_batches and (self._state.step == 0 or self.config.calibrate_only):
                windows = self._preflight(windows)
            if self.config.calibrate_only:
                self.parallel.close()
                return self._state
            if told := self._stop.of_any():
                self._interrupt(told)
            reset_usage()
            if self._dev and (self._state.evaluation_due or (self.config.eval_at_start and self._state.step == 0)):
                self._evaluate()
            trace = self.config.output_dir / "profile" / f"rank{self.parallel.rank}.json"
            profiler = stack.enter_context(StepProfiler(profiled_steps(self.config.profile_steps), trace))
            while self._state.step < self.total_steps:
                profiler.before(self._state.step + 1)
                self._step(windows)
                profiler.after(self._state.step)
                self._after_step()
            self._read()
            self._saver.wait()
            self._saver.export("last", self._exporter(self.optimizer.masters))
            if self.config.ema_decay:
                self._saver.export("ema", self._exporter(self.optimizer.average))
            say_last_words(self._log, self.config, self._state, total_steps=self.total_steps, rate=self.learner.task.rate)
        self.parallel.close()
        return self._state

    def _recheck(self) -> None:
        """Say what there is to say at the start, and whether a run that is resumed has the loss that it had."""
        config, top_k, state = self.config, self.learner.top_k, self._state
        for text in (*self.learner.notes, *self._notes):
            self._log.warn(text)
        if top_k < config.opd_top_k and config.stage == "opd":
            self._log.warn(f"--opd_top_k {config.opd_top_k}: the vocabulary allows {top_k} ids; using {top_k}")
        if config.stage == "opd" and config.opd_objective != "divergence":
            return  # a sum over drawn tokens, mostly below 0, which falls and rises with what is drawn
        self._state = replace(state, step=state.step - 1)  # sampled rollouts are drawn as they were then
        with torch.no_grad():
            again = loss_again(self._feed, self.parallel, state, lambda *window: self._added(self._accumulate(*window, learn=False)))
        self._state = state
        self._recorder.forget()
        if said := jumped(state, again):
            self._log.warn(said)

    def _after_step(self) -> None:
        """What is due after a step: saving, stopping, measuring. What is saved is safe from all that may go wrong afterwards."""
        config, step = self.config, self._state.step
        last = step == self.total_steps
        evaluate = self._dev is not None and (last or (config.eval_freq > 0 and step % config.eval_freq == 0))
        save = last or (config.save_freq > 0 and step % config.save_freq == 0)
        if evaluate or save or self._stopping or self._away:
            self._read(whole=True)  # which may be where the wish to stop is heard
        if self._away:
            self._run_away(self._away)
        self._state = replace(self._state, evaluation_due=evaluate)
        if save:
            self._save()
        if self._stopping and not last:
            self._interrupt(self._stopping)
        if evaluate:
            self._evaluate()

    def _save(self) -> None:
        self._log.sync()
        self._saver.save(self._state, self._exporter(self.optimizer.masters), self.optimizer.state())
        self._saved = self._state.step

    def _interrupt(self, number: int) -> NoReturn:
        """Save what is not saved, and end the run; every rank calls it.

        Raises:
            Interrupted: always.
        """
        if self._saved != self._state.step:
            self._save()
        self._saver.wait()
        self.parallel.close()
        raise Interrupted(number, self._state.step, self.total_steps)

    def _step(self, windows: Windows) -> None:
        """Hand one step to the device, then read the one before, so that the host never waits for the step it has just begun."""
        self._recorder.begin()
        lr = learning_rate(self.config, self._state.step, self.total_steps)
        with self._phases("step"):
            window, batches = next(windows)
            sums = self._accumulate(window, batches)
            count, loss_sum = self._added(sums)
            with self._phases("optimizer"):
                result = self.optimizer.step(lr, count, loss_sum)
        pending = self._recorder.measure(sums, result, self._stop.asked)
        self._read()
        self._state = replace(self._state, step=self._state.step + 1, cursor=window.cursor, last_cursor=self._state.cursor)
        self._unread = (self._state, pending, lr)

    def _read(self, *, whole: bool = False) -> None:
        """Log the step that was not read yet, if there is one, and act on its numbers; ``whole`` has all ranks measure it in full.

        Raises:
            TrainingStopped: see ``run``.
        """
        if self._unread is None:
            return
        (state, pending, lr), self._unread = self._unread, None
        measured = self._recorder.read(pending)
        self._stopping = measured.stop
        skipped = 0 if measured.result.finite else self._state.skipped + 1
        record = self._recorder.record(state, measured, lr, whole=whole)
        away = self._watch.saw(record)
        loss, bad = measured.result.loss if measured.result.finite else None, self._recorder.bad_rows
        self._state = replace(self._state, skipped=skipped, bad_rows=bad, unfinished=self._watch.window, last_loss=loss)
        self._log.step(record)
        if away and self.config.gates == "warn":
            self._log.warn(f"warning: {away}; {AWAY}")
        elif away:
            self._away = away
        if skipped >= self.config.max_skipped_steps:
            raise TrainingStopped(
                f"step {state.step}: loss or gradient norm was not finite for {skipped} steps in a row (--max_skipped_steps); "
                "lower --learning_rate or look at the data of the last steps in metrics.jsonl"
            )

    def _run_away(self, reason: str) -> NoReturn:
        """End the run. No checkpoint is written where a sound one stands, because a resume would go on from the new one.

        Raises:
            TrainingStopped: always.
        """
        self._saver.wait()
        kept = self.parallel.broadcast(self._saver.newest(lambda state: self._watch.sound(state.unfinished)))
        if kept is None:
            self._save()
            self._saver.wait()
            where = f"no checkpoint is of before, so step {self._state.step} is saved as it is"
        else:
            where = f"the last good checkpoint is {kept}"
        self.parallel.close()
        raise TrainingStopped(f"{reason}; {where}; {AWAY}, or go on all the same with --gates warn")

    def _accumulate(self, window: Window, batches: Iterator[Batch | None], *, learn: bool = True) -> list[LossSum]:
        """Forward and backward of this rank's micro-batches; their sums, without graphs. Without ``learn`` there is no backward."""
        sums: list[LossSum] = []
        student = self.learner.student
        for place in range(window.rounds):
            asked = time.perf_counter()
            batch = next(batches)
            self._phases.add("data_wait", time.perf_counter() - asked)
            last = place + 1 == window.rounds
            if batch is None:
                if self.learner.sharded:
                    zero = student.inside(self._idle, last=last)
                    if learn:
                        zero.backward()
                continue
            self._recorder.saw(batch)
            with self._phases("move_batch"):
                moved = batch.to(self.parallel.device)
            total, loss = student.inside(partial(self._loss_and_total, moved), last=last)
            if learn:
                with self._phases("backward"):
                    total.backward()
                    self.optimizer.collect()
            sums.append(replace(loss, total=total.detach()))
        return sums

    def _loss_and_total(self, batch: Batch) -> tuple[torch.Tensor, LossSum]:
        """The loss with its total in the open: FSDP2 looks for the tensors of a forward's result."""
        loss = self._loss(batch)
        return loss.total, loss

    def _added(self, sums: Sequence[LossSum]) -> tuple[torch.Tensor, torch.Tensor]:
        """What this rank's positions weigh, which is their number where each weighs 1, and its summed loss."""
        none = torch.zeros((), device=self.parallel.device)
        return torch.stack([loss.count for loss in sums] or [none]).sum(), torch.stack([loss.total for loss in sums] or [none]).sum()

    def _idle(self) -> torch.Tensor:
        """What a rank without a batch does in a round, so that its collectives are those of the others."""
        learner = self.learner
        batch = learner.idle_batch().to(self.parallel.device)
        return idle_step(self.model, self.engine, batch, stage=self.config.stage, ctc_head=learner.ctc_head)

    @torch.no_grad()
    def _preflight(self, windows: Windows) -> Windows:
        """Look at the first windows without learning from them, and stop a run that cannot succeed; returns them all, from the first."""
        config, seen = self.config, list[tuple[Window, list[Batch | None], list[str]]]()
        looked: list[Batch | None] = []
        sums: list[LossSum] = []
        self._recorder.begin()
        rounds = -(-config.calibration_batches // self.parallel.world)
        with self._phases("step"):
            while rounds > 0 and (taken := next(windows, None)) is not None:
                window, batches = taken[0], list(taken[1])
                seen.append((window, batches, self._recorder.take_bad()))
                looked += batches[: min(rounds, window.rounds)]
                sums += self._accumulate(window._replace(rounds=min(rounds, window.rounds)), iter(batches), learn=False)
                rounds -= window.rounds
        count, loss_sum = self._added(sums)
        total = self.parallel.total(torch.stack([loss_sum, torch.zeros_like(count), count]).double())
        measured = self._recorder.read(self._recorder.measure(sums, total, self._stop.asked))
        loss, _, positions = measured.result
        totals = self._recorder.totals(measured)
        bad = self._recorder.judge([text for _, _, texts in seen for text in texts], seen[-1][0].cursor) if seen else []
        reason = verdict(loss / (positions or 1.0), positions, bad, rule=config.on_bad_audio)
        start = self._look.look(looked, totals) if reason is None and (config.calibrate_only or config.gates != "off") else None
        reasons = [reason] if reason else refusals(config, start) if start and config.gates != "off" else []
        if self.parallel.is_first and config.calibrate_only:
            print(f"[calibration summary] {json_text(summary(totals, start, positions=positions))}", flush=True)
            reasons += self._calibrated(start, looked, totals, reasons) if start else []
        for text in reasons if reason is None and config.gates == "warn" else ():
            self._log.warn(f"warning: preflight: {text}")
        if reason or (reasons and config.gates == "strict"):
            advice = "" if reason else " (--gates warn goes on all the same)"
            raise TrainingStopped(f"preflight: {'; '.join(reasons)}{advice}")
        return itertools.chain(((window, self._again(batches, texts)) for window, batches, texts in seen), windows)

    def _calibrated(
        self, start: Start, batches: Sequence[Batch | None], measured: Mapping[str, float], reasons: Sequence[str]
    ) -> list[str]:
        """Print what ``arkfast calibrate`` finds besides; more reasons not to start. Only rank 0 calls it: no collective runs in it."""
        config = self.config
        found = calibrate(config, self.learner, self._teacher, batches)
        rounds = -(-self._feed.micro_batches // self.parallel.world)
        lines = report(config, start, found, measured=measured, steps=self.total_steps, rounds=rounds)
        more = found.refusals() if found and config.gates != "off" else []
        good = "nothing speaks against this start" if config.gates != "off" else "nothing was judged: --gates off"
        verdicts = [("no-go", text) for text in (*reasons, *more)] or [("go", good)]
        width = max(len(name) for name, _ in (*lines, *verdicts))
        print("\n".join(f"{name:<{width}}  {text}" for name, text in (*lines, *verdicts)), flush=True)
        return more

    def _again(self, batches: Sequence[Batch | None], bad: Sequence[str]) -> Iterator[Batch | None]:
        """A window's batches once more. Its bad rows are counted with its step: a checkpoint before that must not count them."""
        for text in bad:
            self._recorder.passed_over(text)
        yield from batches

    def _evaluate(self) -> None:
        dev = self._dev
        assert dev is not None
        student = self.learner.student

        def measure() -> JsonObject | None:
            with student.whole():
                return dev.measure(self.model, self.engine.allowed, stop=lambda: self._stop.heard)

        self._state = state = replace(self._state, evaluation_due=True)
        with torch.no_grad():
            record = student.inside(measure)
        if record is None:
            self._interrupt(self._stop.of_any())
        rate: float | None = record[f"eval_{self.learner.task.rate}"]
        better = rate is not None and (state.best_wer is None or rate < state.best_wer)
        self._state = state = replace(state, evaluation_due=False)
        if better:
            self._state = replace(state, best_wer=rate, best_step=state.step, best_dev=dev.digest)
        self._log.evaluation({"step": state.step, **record, "best": better})
        if better:
            self._saver.best(self._state, self._exporter(self.optimizer.masters))
        self._saver.amend(self._state)

    def _exporter(self, weights: dict[str, torch.Tensor]) -> Callable[[Path], None]:
        """Gathers the model's weights now, on every rank; what it returns writes them into a folder, on rank 0."""
        whole = self.learner.whole_weights(weights, keep=self.parallel.is_first)
        return lambda folder: self._export(folder, whole)

    def _export(self, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
        """A Transformers checkpoint of the master weights, in the precision of the checkpoint that training began from."""
        write_model(folder, self.model, weights, self.learner.processor)
