"""Stopping in time when the system asks for it.

Knows the signal and how its receipt travels; saving is the trainer's. The request rides on the all-reduce that every step makes anyway, so
all ranks see it in the same step, without a look at a store between steps; whoever did not get the signal stops too.
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

    Attributes:
        agreed: whether the last step was told, by any rank, to be the last.
    """

    def __init__(self, parallel: Parallel) -> None:
        self._parallel, self._heard, self.agreed = parallel, False, False
        self._before: Any = None
        self._asked: torch.Tensor | None = None

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
        numbers, self._asked = self._parallel.total(torch.cat([packed, asked])).split([len(packed), 1])
        return numbers

    def agree(self) -> bool:
        """Called once a step, after the optimizer's: whether to stop."""
        self.agreed = self._heard if self._asked is None else bool(self._asked > 0)
        return self.agreed
