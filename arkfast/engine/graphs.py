"""Decode steps as CUDA graphs: one captured for each number of rows, replayed with a single launch.

Knows how to capture and when a capture is stale; knows nothing of what a step does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
"""Numbers of rows that graphs are captured for; beyond the last, multiples of 64."""


def bucket(rows: int, most: int) -> int:
    """The smallest captured number of rows that holds ``rows``, at most ``most``."""
    fitting = next((size for size in BUCKETS if size >= rows), -(-rows // 64) * 64)
    return min(fitting, most)


class StepGraphs:
    """Captured steps.

    Args:
        step: ``step(rows, mode)`` runs one step; it must read and write memory that stays where it is.
        kept: state that a step changes; capturing leaves it as it was.
    """

    def __init__(self, step: Callable[[int, Any], None], kept: Any) -> None:
        self._step, self._kept = step, kept
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None
        self.broken = False
        """Whether a capture failed; steps are launched one kernel at a time from then on, which a warning has said."""

    def run(self, rows: int, mode: Any) -> None:
        """One step of the first ``rows`` rows."""
        if self.broken:
            self._step(rows, mode)
            return
        graph = self._graphs.get((rows, mode))
        if graph is None:
            graph = self._capture(rows, mode)
        if graph is None:
            self._step(rows, mode)
        else:
            graph.replay()

    def _capture(self, rows: int, mode: Any) -> torch.cuda.CUDAGraph | None:
        before = self._kept.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):  # compiles kernels and lets libraries allocate what they keep
                for _ in range(2):
                    self._step(rows, mode)
            torch.cuda.current_stream().wait_stream(stream)
            self._kept.copy_(before)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                self._step(rows, mode)
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
