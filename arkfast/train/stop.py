"""Stopping in time when the system or a person asks for it.

The request rides on the all-reduce that every step makes anyway, and is read with the step's other numbers, one step later: all ranks see
it after the same step, without a look at a store and without a wait for the device; whoever did not get the signal stops too. In an
evaluation, where each rank works by itself, it looks at ``heard`` between batches, and the ranks agree when they meet.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType

import torch

from arkfast.train.parallel import Parallel

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""What stops a run: the end of a job, Ctrl-C, a terminal that is gone, and Slurm's warning where it is asked for by that name."""
_ONE_PRESS = 1.0  # seconds in which a launcher and its process group may both pass on the same Ctrl-C


class Interrupted(RuntimeError):
    """The system told the run to stop; it did, with everything saved.

    Args:
        number: the signal.
        step: that is saved.
        total_steps: of the run.
    """

    def __init__(self, number: int, step: int, total_steps: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"Stopped by {name}; step {step} of {total_steps} saved. Continue with --resume_from_checkpoint auto.")
        self.exit_code = 128 + number
        """What the process exits with, as one ended by the signal would: it has not finished."""


class StopRequest:
    """Hears ``SIGNALS`` while it is entered, save those that the process was started to ignore, as ``nohup`` does.

    A second Ctrl-C, a second or more after the first, ends the process at once.

    Args:
        parallel: the processes.
    """

    def __init__(self, parallel: Parallel) -> None:
        self._parallel = parallel
        self.heard = 0
        """The signal that this process got; 0: none."""
        self._since = 0.0
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self.asked = torch.zeros(len(SIGNALS), dtype=torch.float64, device=parallel.device)
        """[signals] float64: how many ranks had been asked to stop, and by what, when the last step's numbers were added up."""

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python lets no one listen
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self.heard and number == signal.SIGINT and time.monotonic() - self._since > _ONE_PRESS:
            raise KeyboardInterrupt
        if not self.heard:
            self.heard, self._since = number, time.monotonic()

    def total(self, packed: torch.Tensor) -> torch.Tensor:
        """``Parallel.total`` of a step's numbers, the request among them."""
        asked = packed.new_zeros(len(SIGNALS))
        if self.heard:
            asked[SIGNALS.index(self.heard)] = 1.0
        numbers, self.asked = self._parallel.total(torch.cat([packed, asked])).split([len(packed), len(SIGNALS)])
        return numbers

    def of_any(self) -> int:
        """The signal that any rank got, 0 where none did; every rank calls it, outside the step."""
        return max(self._parallel.gather(self.heard))


def asked_for(counts: Sequence[float]) -> int:
    """The signal that ``StopRequest.asked`` counts; 0 where it counts none."""
    return next((number for number, count in zip(SIGNALS, counts, strict=True) if count > 0), 0)
