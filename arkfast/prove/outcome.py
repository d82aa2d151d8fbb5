"""What a comparison came to, and how long and how much memory a part of the proof took."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch

Verdict = Literal["pass", "FAIL", "not compared"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One line of the report."""

    name: str
    """The comparison's name."""
    verdict: Verdict
    """``not compared`` says that nothing was checked, so it is no pass."""
    found: float | None = None
    """What was measured, in the comparison's own unit; None where there is no number, or none that is finite."""
    tolerance: float | None = None
    """The largest ``found`` that passes."""
    reason: str = ""
    """Why the tolerance is what it is."""
    detail: str = ""
    """What was compared, and what was found."""


def within(name: str, found: float, tolerance: float, *, reason: str, detail: str) -> Outcome:
    """Pass where ``found`` is a number that is not above ``tolerance``."""
    verdict: Verdict = "pass" if found <= tolerance else "FAIL"
    number = found if math.isfinite(found) else None
    said = detail if number is not None else f"{detail}; the difference is {found}"
    return Outcome(name=name, verdict=verdict, found=number, tolerance=tolerance, reason=reason, detail=said)


def not_compared(name: str, why: str) -> Outcome:
    """A comparison that was not made, and why."""
    return Outcome(name=name, verdict="not compared", detail=why)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a part of the proof took."""

    name: str
    seconds: float
    peak_mb: float | None
    """Most memory in MiB: of the GPU during this part, of the process up to its end on a CPU; None where the system does not say."""


@dataclass
class Stopwatch:
    """Measures what the parts of a proof take."""

    device: torch.device
    parts: list[Part] = field(default_factory=list)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure a part; it is listed even where it ends in an error."""
        cuda, started = self.device.type == "cuda", time.perf_counter()
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            yield
        finally:
            if cuda:
                torch.cuda.synchronize(self.device)
            peak = torch.cuda.max_memory_allocated(self.device) / 2**20 if cuda else _process_peak()
            self.parts.append(Part(name=name, seconds=time.perf_counter() - started, peak_mb=peak))


def _process_peak() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    import sys

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
