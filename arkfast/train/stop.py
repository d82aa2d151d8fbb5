"""Stopping in time when the system asks for it.

Knows the signal and how its receipt travels; saving is the trainer's. The request rides on the all-reduce that every step makes anyway, and
is read with the step's other numbers, one step later: all ranks see it after the same step, without a look at a store and without a wait
for the device; whoever did not get the signal stops too.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch

from arkfast.train.parallel import Parallel

EXIT_CODE = 128 + signal.SIGTERM
"""What a run that was told to stop exits with, as a process ended by the signal would: it has not finished."""


class StopRequest:
    """Hears SIGTERM while it is entered.

    Args:
        parallel: the processes.
    """

    def __init__(self, parallel: Parallel) -> None:
        self._parallel, self._heard = parallel, False
        self._before: Any = None
        self.asked = torch.zeros(1, dtype=torch.float64, device=parallel.device)
        """[1] float64: how many ranks had been asked to stop when the last step's numbers were added up."""

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python lets no one listen
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, _number: int, _frame: FrameType | None) -> None:
        self._heard = True

    def total(self, packed: torch.Tensor) -> torch.Tensor:
        """``Parallel.total`` of a step's numbers, the request among them."""
        asked = packed.new_full((1,), float(self._heard))
        numbers, self.asked = self._parallel.total(torch.cat([packed, asked])).split([len(packed), 1])
        return numbers
