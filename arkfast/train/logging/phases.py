"""Where a step's time goes.

It waits for the device only when it is asked for the figures. A step's phases can be set aside and asked for when the device is past them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Phases:
    """Seconds spent in named phases: by the device's own clock on a GPU, by the host's elsewhere.

    Args:
        device: where the phases' work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block, to be added to the phase ``name``."""
        if self._cuda:
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record(torch.cuda.current_stream(self._device))
            yield
            last.record(torch.cuda.current_stream(self._device))
            self._events.append((name, first, last))
        else:
            started = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - started

    def add(self, name: str, seconds: float) -> None:
        """Count host time that no block encloses."""
        self._seconds[name] += seconds

    def cut(self) -> Phases:
        """The phases since the last call, as an object of their own, without a wait."""
        past = Phases(self._device)
        past._events, self._events = self._events, past._events
        past._seconds, self._seconds = self._seconds, past._seconds
        return past

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last call; on a GPU it waits for the last phase to end."""
        for name, first, last in self._events:
            last.synchronize()
            self._seconds[name] += first.elapsed_time(last) / 1000.0
        taken = dict(self._seconds)
        self._events.clear()
        self._seconds.clear()
        return taken
