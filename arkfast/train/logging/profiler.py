"""A trace of the steps that are asked for, made by torch's profiler."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile

from arkfast.files import new_file


class StepProfiler:
    """Profiles steps ``first`` to ``last`` of a run.

    Args:
        steps: (first, last), counted from 1; None profiles nothing.
        path: the trace, a JSON file that Perfetto and chrome://tracing open.
    """

    def __init__(self, steps: tuple[int, int] | None, path: Path) -> None:
        self._steps, self._path = steps, path
        self._running: profile | None = None

    def before(self, step: int) -> None:
        """Called before step ``step``."""
        if self._steps is not None and self._running is None and self._steps[0] <= step <= self._steps[1]:
            activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
            self._running = profile(activities=activities, record_shapes=True)
            self._running.__enter__()

    def after(self, step: int) -> None:
        """Called after step ``step``; writes the trace when it was the last."""
        if self._steps is not None and step >= self._steps[1]:
            self._finish()

    def _finish(self) -> None:
        if self._running is not None:
            running, self._running = self._running, None
            running.__exit__(None, None, None)
            with new_file(self._path) as temporary:
                running.export_chrome_trace(str(temporary))

    def __enter__(self) -> StepProfiler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._finish()
