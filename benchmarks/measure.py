"""Interleaved timing of calls on one CPU thread.

Rounds are interleaved, so that a machine that others slow down slows all alike,
and the clock counts this process's CPU time, which waiting for a core does not add to.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping

import numpy as np

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def one_thread() -> None:
    """Starts the program anew with one thread for every library that asks the environment; returns at once where that is set."""
    if any(os.environ.get(name) != "1" for name in THREAD_VARIABLES):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | dict.fromkeys(THREAD_VARIABLES, "1"))


def interleaved(calls: Mapping[str, Callable[[], object]], *, rounds: int, seconds: float = 0.004) -> dict[str, dict[str, float]]:
    """CPU seconds of each call: quantiles over the rounds.

    Args:
        calls: by name; each is run once to warm up.
        rounds: each times every call once, in turn.
        seconds: a faster call is repeated within a round until its time adds up to about this much, and the mean counts.

    Returns:
        name → {"p20", "p50", "p80"}.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        begin = time.process_time()
        call()
        repeats[name] = max(1, round(seconds / max(time.process_time() - begin, 1e-6)))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()  # untimed: it finds the caches full of the call before
            begin = time.process_time_ns()
            for _ in range(repeats[name]):
                call()
            taken[name].append((time.process_time_ns() - begin) * 1e-9 / repeats[name])
    return {
        name: dict(zip(("p20", "p50", "p80"), map(float, np.percentile(times, (20, 50, 80))), strict=True)) for name, times in taken.items()
    }
