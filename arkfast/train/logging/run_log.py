"""The run's log: one JSON object a step in ``metrics.jsonl`` and on standard output; a bar with the time left on standard error.

Knows records and where they are shown; TensorBoard gets the numbers of the same records, where it is asked for.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from tqdm import tqdm

from arkfast.files import LineFile, json_line, naming, write_bytes
from arkfast.installation import install_hint
from arkfast.records import InputError, JsonObject
from arkfast.train.logging.phase_table import STEP, parts_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SHARES = tuple((phase.logged, phase.short) for phase in parts_of(STEP.name) if phase.short)
"""Phases whose shares of the step the bar shows, as the log and the bar call them."""


def progress(record: JsonObject) -> str:
    """What the bar says of a step: loss, tokens and audio seconds a second, share of the device's peak, where the time went."""
    parts = [f"loss {record['loss']:.4f}"]
    if "tokens_per_second" in record:
        parts += [f"{record['tokens_per_second']:.0f} tok/s", f"{record['audio_seconds_per_second']:.1f} audio-s/s"]
    if "mfu" in record:
        parts.append(f"MFU {100 * record['mfu']:.0f}%")
    seconds = record[STEP.logged]
    shares = {name: record.get(key, 0.0) / seconds for key, name in SHARES} if seconds else {}
    return " ".join([*parts, *(f"{name} {100 * share:.0f}%" for name, share in shares.items() if share >= 0.01)])


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
        total_steps: for the bar.
        print_every: print every so many steps.
        silent: write and print nothing, on all ranks but the first.
        tensorboard: folder of an event file, or None.

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
    ) -> None:
        self._path, self._start_step, self._total_steps, self._print_every = path, start_step, total_steps, print_every
        self._evaluated = start_step - evaluate_again
        self._silent = silent
        self._event_folder = None if silent else tensorboard
        if self._event_folder is not None:
            _event_writer()  # whether there is one
        self._events: SummaryWriter | None = None
        self._file: LineFile | None = None
        self._bar: tqdm[NoReturn] | None = None

    def __enter__(self) -> RunLog:
        """Drop the lines of steps that are taken again, and open what is written."""
        if self._silent:
            return self
        if self._event_folder is not None:
            # Points of later steps, from before a resume, are no longer shown.
            self._events = _event_writer()(str(self._event_folder), purge_step=self._start_step + 1)
        if self._path is not None:
            if self._path.exists():
                self._rewind(self._path)
            with naming(self._path):
                self._file = LineFile(self._path, fresh=False)
        self._bar = tqdm(
            total=self._total_steps, initial=self._start_step, unit="step", file=sys.stderr, dynamic_ncols=True, mininterval=1.0
        )
        return self

    def _rewind(self, path: Path) -> None:
        complete = (line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n"))
        stands = {False: self._start_step, True: self._evaluated}  # up to which step, of steps and of evaluations
        kept = [line for line in complete if self._start_step and (row := json.loads(line))["step"] <= stands["eval_utterances" in row]]
        write_bytes(path, b"".join(kept))

    def step(self, record: JsonObject) -> None:
        """Log one optimizer step."""
        if self._silent:
            return
        self._write(record, shown=record["step"] % self._print_every == 0)
        if self._bar is not None:
            self._bar.set_postfix_str(progress(record), refresh=False)
            self._bar.update(1)

    def evaluation(self, record: JsonObject) -> None:
        """Log one evaluation."""
        if self._silent:
            return
        self._write(record, shown=True)

    def note(self, text: str) -> None:
        """Say something once, without breaking the bar."""
        if not self._silent:
            tqdm.write(text, file=sys.stderr)

    def sync(self) -> None:
        """Have all lines on disk: before a checkpoint is, which a resume goes on from."""
        if self._file is not None:
            with naming(self._file.path):
                self._file.sync()

    def _write(self, record: JsonObject, *, shown: bool) -> None:
        line = json.dumps(record, ensure_ascii=False)
        if self._file is not None:
            with naming(self._file.path):
                self._file.add(json_line(record))
        if self._events is not None:
            for name, value in record.items():
                if isinstance(value, (int, float)) and name != "step":
                    self._events.add_scalar(name, float(value), record["step"])
        if shown:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._events is not None:
            self._events.close()
        if self._file is not None:
            try:
                if error is None:
                    self.sync()
            finally:
                self._file.close()
