"""The run's log: one JSON object a step in ``metrics.jsonl``, and on standard output where that is asked for or read by a program.

On standard error a person sees how far the run is. TensorBoard gets the numbers of the same records, where it is asked for.
"""

from __future__ import annotations

import json
import math
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from arkfast.console import Console, is_terminal
from arkfast.files import LineFile, json_line, naming, write_bytes
from arkfast.installation import install_hint
from arkfast.records import InputError, JsonObject
from arkfast.train.checkpoints.run_folder import set_aside
from arkfast.train.config import TrainConfig
from arkfast.train.logging.phase_table import STEP, parts_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SAME_LOSS = 0.02
"""Relative difference up to which a step that is taken again has the loss that it had: a GPU adds up in an order of its own."""
SHARES = tuple((phase.logged, phase.short) for phase in parts_of(STEP.name) if phase.short)
"""Phases whose shares of the step the live line shows, as the log and the live line call them."""


def progress(record: JsonObject) -> str:
    """What the live line says of a step: loss, tokens and audio seconds a second, share of the device's peak, where the time went."""
    parts = [f"loss {record['loss']:.4f}"]
    if "tokens_per_second" in record:
        parts += [f"{record['tokens_per_second']:.0f} tok/s", f"{record['audio_seconds_per_second']:.1f} audio-s/s"]
    if "mfu" in record:
        parts.append(f"MFU {100 * record['mfu']:.0f}%")
    seconds = record[STEP.logged]
    shares = {name: record.get(key, 0.0) / seconds for key, name in SHARES} if seconds else {}
    return " ".join([*parts, *(f"{name} {100 * share:.0f}%" for name, share in shares.items() if share >= 0.01)])


def measured(record: JsonObject) -> str:
    """An evaluation in words: its step, its error rate, and whether it is the lowest so far."""
    name = next(name for name in record if name.startswith("eval_"))  # the task's rate comes before what else was counted
    best = ", the lowest so far" if record.get("best") else ""
    rate = f"{name.removeprefix('eval_').upper()} {percent(record[name])}"
    return f"step {record['step']}: {rate}{best}, on {record['eval_utterances']} utterances"


def percent(rate: float | None) -> str:
    """An error rate as it is read; one that is no number is unknown."""
    return "unknown" if rate is None or not math.isfinite(rate) else f"{rate:.2f} %"


def strict(record: JsonObject) -> JsonObject:
    """A record as strict JSON can say it: a number that does not exist is null."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()}


def _record(line: bytes) -> JsonObject | None:
    """What stands in a line of the log; None where that is no record."""
    try:
        row: JsonObject = json.loads(line)
        return row if isinstance(row["step"], int) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _event_writer() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(f"--tensorboard: {error}: {install_hint('train')}, or leave it out") from error
    return SummaryWriter


class RunLog:
    """Appends to ``metrics.jsonl`` while it is entered. A killed process loses no line, and a power cut none of before the last ``sync``.

    Args:
        path: the file; None keeps nothing. Lines of steps after ``start_step`` (of a run that was killed past its last checkpoint, or of
            another branch) are dropped.
        start_step: steps done before.
        evaluate_again: whether an evaluation of ``start_step`` is to come, so that a line of it is dropped too.
        total_steps: for the time that is left.
        print_every: put every so many steps on standard output.
        silent: write and print nothing, on all ranks but the first.
        tensorboard: folder of an event file, or None.
        log_json: whether records go to standard output; None: where that is no terminal, and not under ``quiet``.
        quiet: say nothing but warnings.
        log_file: a file that everything that is said goes to besides.

    Raises:
        InputError: TensorBoard is asked for and not installed, or the file cannot be written, now or later.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        start_step: int,
        evaluate_again: bool = False,
        total_steps: int,
        print_every: int,
        silent: bool = False,
        tensorboard: Path | None = None,
        log_json: bool | None = None,
        quiet: bool = False,
        log_file: Path | None = None,
    ) -> None:
        self._path, self._start_step, self._total_steps, self._print_every = path, start_step, total_steps, print_every
        self._evaluated = start_step - evaluate_again
        self._silent = silent
        self._event_folder = None if silent else tensorboard
        if self._event_folder is not None:
            _event_writer()  # whether there is one
        self._expected: float | None = None
        """The loss that the next step had when it was taken before."""
        self._events: SummaryWriter | None = None
        self._file: LineFile | None = None
        self._console = Console(quiet=quiet, log_file=None if silent else log_file)
        self._json = not quiet and not is_terminal(sys.stdout) if log_json is None else log_json

    @classmethod
    def of_run(cls, config: TrainConfig, *, silent: bool, start_step: int, evaluate_again: bool, total_steps: int) -> RunLog:
        """The log of a run's folder; ``--calibrate_only`` keeps none."""
        keep = not config.calibrate_only
        return cls(
            config.output_dir / "metrics.jsonl" if keep else None,
            start_step=start_step,
            evaluate_again=evaluate_again,
            total_steps=total_steps,
            print_every=config.log_freq,
            silent=silent,
            tensorboard=config.output_dir / "tensorboard" if config.tensorboard and keep else None,
            log_json=config.log_json,
            quiet=config.quiet,
            log_file=config.log_file,
        )

    def __enter__(self) -> RunLog:
        """Drop the lines of steps that are taken again, and open what is written."""
        if self._silent:
            return self
        self._console.__enter__()
        if self._event_folder is not None:
            # Points of later steps, from before a resume, are no longer shown.
            self._events = _event_writer()(str(self._event_folder), purge_step=self._start_step + 1)
        if self._path is not None:
            if self._path.exists():
                self._rewind(self._path)
            with naming(self._path):
                self._file = LineFile(self._path, fresh=False)
        self._console.begin(unit="step", total=self._total_steps, done=self._start_step)
        return self

    def _rewind(self, path: Path) -> None:
        """Keep the lines of what the run has behind it. A file with damaged lines is set aside, and its good ones are kept."""
        stands = {False: self._start_step, True: self._evaluated}  # up to which step, of steps and of evaluations
        kept: list[bytes] = []
        damaged: list[int] = []
        lines = path.read_bytes().split(b"\n")[:-1]  # a killed process may leave half a line
        for number, line in enumerate(lines, 1):
            row = _record(line)
            if row is None:
                damaged.append(number)
            elif row["step"] <= stands["eval_utterances" in row] and self._start_step:
                kept.append(json_line(strict(row)))
            elif row["step"] == self._start_step + 1 and "loss" in row:
                self._expected = strict(row)["loss"]
        if damaged:
            aside = set_aside(path)
            count = f"{len(damaged)} lines are" if len(damaged) > 1 else "a line is"
            self.warn(f"{path}: {count} damaged, first at line {damaged[0]}; the file is moved to {aside.name}, its good lines are kept")
        write_bytes(path, b"".join(kept))

    def step(self, record: JsonObject) -> None:
        """Log one optimizer step."""
        if self._silent:
            return
        self._write(record, shown=record["step"] % self._print_every == 0)
        self._console.advance(progress(record))
        before, self._expected = self._expected, None
        if before is not None and not math.isclose(record["loss"], before, rel_tol=SAME_LOSS):
            self.warn(
                f"warning: step {record['step']} had loss {before:.6g} before the run was stopped, and taken again it has "
                f"{record['loss']:.6g}: weights, data or settings are not what they were"
            )

    def evaluation(self, record: JsonObject) -> None:
        """Log one evaluation."""
        if self._silent:
            return
        self._write(record, shown=True)
        self._console.say(measured(record))

    def note(self, text: str) -> None:
        """Say something once, without breaking the live line."""
        if not self._silent:
            self._console.say(text)

    def warn(self, text: str) -> None:
        """Say something that ``--quiet`` must not hide."""
        if not self._silent:
            self._console.warn(text)

    def keep(self, text: str) -> None:
        """Add something to the log file alone, if there is one."""
        if not self._silent:
            self._console.keep(text)

    def close_line(self) -> None:
        """Take the live line away: what follows is the last that the run says."""
        self._console.end()

    def sync(self) -> None:
        """Have all lines on disk: before a checkpoint is, which a resume goes on from."""
        if self._file is not None:
            with naming(self._file.path):
                self._file.sync()

    def _write(self, record: JsonObject, *, shown: bool) -> None:
        record = strict(record)
        if self._file is not None:
            with naming(self._file.path):
                self._file.add(json_line(record))
        if self._events is not None:
            for name, value in record.items():
                if isinstance(value, (int, float)) and name != "step":
                    self._events.add_scalar(name, float(value), record["step"])
        if shown and self._json:
            self._console.out(json_line(record).decode("utf-8").rstrip("\n"))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with ExitStack() as stack:
            stack.callback(self._console.__exit__, kind, error, trace)
            if self._events is not None:
                self._events.close()
            if self._file is not None:
                stack.callback(self._file.close)
                if error is None:
                    self.sync()
