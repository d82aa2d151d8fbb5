"""Decode steps as CUDA graphs: one captured for each number of rows, replayed with a single launch.

What a step does is up to the caller. Where a capture fails, steps are launched one kernel at a time, after a warning.
"""

from __future__ import annotations

import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from arkfast.engine.ahead import HIGH

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
"""Numbers of rows that graphs are captured for; beyond the last, multiples of 64."""

M = TypeVar("M", bound=Hashable)
Step = Callable[[int, M], None]
"""``step(rows, mode)`` runs one step; it must read and write memory that stays where it is."""

_idle_streams: dict[torch.device, list[torch.cuda.Stream]] = defaultdict(list)
"""Streams whose graphs are gone."""


def bucket(rows: int, most: int) -> int:
    """The smallest captured number of rows that holds ``rows``, at most ``most``."""
    fitting = next((size for size in BUCKETS if size >= rows), -(-rows // 64) * 64)
    return min(fitting, most)


class StepGraphs:
    """Captured steps.

    Args:
        kept: state that a step changes; capturing leaves it as it was.
        device: where it lies.
    """

    def __init__(self, kept: Any, device: torch.device) -> None:
        self._kept, self._device = kept, device
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None  # torch exports no name for its type
        self._stream: torch.cuda.Stream | None = None
        self.broken = False
        """Whether a capture failed; steps are launched one kernel at a time from then on, which a warning has said."""

    def run(self, step: Step[M], rows: int, mode: M) -> None:
        """One step of the first ``rows`` rows.

        Args:
            step: the same at every call. It is not kept: its owner owns these graphs too, and its memory goes when it is let go.
            rows, mode: what ``step`` takes.
        """
        if self.broken:
            step(rows, mode)
            return
        graph = self._graphs.get((rows, mode))
        if graph is None:
            graph = self._capture(step, rows, mode)
        if graph is None:
            step(rows, mode)
        else:
            graph.replay()

    def _capture(self, step: Step[M], rows: int, mode: M) -> torch.cuda.CUDAGraph | None:
        self._stream = self._stream or _lent_stream(self, self._device)
        before, graph = self._kept.clone(), torch.cuda.CUDAGraph()
        try:
            with _aside(self._stream):
                for _ in range(2):  # compiles kernels and lets libraries allocate what they keep
                    step(rows, mode)
                self._kept.copy_(before)
                # What other threads ask of the device (pinned memory, a checkpoint's copies) has no part in this capture.
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    step(rows, mode)
        except RuntimeError as error:
            # What may not stand in a graph is refused with an error of the device too, but one that leaves the device as it was.
            lost = isinstance(error, torch.AcceleratorError) and "captur" not in str(error)
            if lost or isinstance(error, torch.OutOfMemoryError):
                raise
            self.broken = True
            self._kept.copy_(before)
            warnings.warn(
                f"arkfast: the decode step could not be captured as a CUDA graph and runs slower: {error}", RuntimeWarning, stacklevel=2
            )
            return None
        self._pool = self._pool or graph.pool()
        self._graphs[rows, mode] = graph
        return graph


def _lent_stream(owner: object, device: torch.device) -> torch.cuda.Stream:
    """A stream for as long as ``owner`` lives, which nobody else captures on meanwhile.

    cuBLAS has a workspace for each stream, and a graph keeps the address of the one that it was captured with. Torch 2.13 frees a stream's
    workspace with the first of the graphs captured there that goes, while the others still write to it. Kernels of a graph have the
    priority of the stream that they were captured on, whatever stream replays it.
    """
    idle = _idle_streams[device]
    stream = idle.pop() if idle else torch.cuda.Stream(device, priority=HIGH)
    weakref.finalize(owner, idle.append, stream)
    return stream


@contextmanager
def _aside(stream: torch.cuda.Stream) -> Iterator[None]:
    """Work on ``stream``, after what the current one was given and before what it is given next.

    The current stream and device come back even where the end of a capture raises, which torch's own context then does not see to.
    """
    here = torch.cuda.current_stream(stream.device)
    stream.wait_stream(here)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        here.wait_stream(stream)
