"""Times calls side by side.

Every round calls every provider once, so that a clock that drifts drifts for all; inputs rotate and the cache is emptied in between, so
that nothing is found where the call before left it; medians, never means or minima.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Mapping

import torch

Call = Callable[[int], object]
"""Runs an implementation on the input set of a number."""
LEAST, MOST = 3, 60
"""Samples of a call: no fewer, however slow it is, and no more, however fast."""
HEAD_START = 8_000_000
"""Cycles that a GPU is kept busy before a call that stands in a queue: four milliseconds at 2 GHz. Launching a loss takes about one."""


def l2_bytes(device: torch.device) -> int:
    """The GPU's L2 cache; 0 elsewhere."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0


def sets_needed(bytes_of_set: int, device: torch.device) -> int:
    """How many input sets it takes to overrun L2 twice, at least 3 and at most 16; 2 on a CPU, where figures are of toy sizes."""
    if device.type != "cuda":
        return 2
    return min(16, max(3, math.ceil(2 * l2_bytes(device) / max(1, bytes_of_set))))


def percentiles(samples: list[float]) -> dict[str, float]:
    """p20, p50 and p80 in the unit of ``samples``, interpolated between neighbours."""
    ordered = sorted(samples)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return {"p20": at(0.2), "p50": at(0.5), "p80": at(0.8)}


class Clock:
    """Times one call at a time on a device.

    Args:
        device: as above.
        queued: give the host a head start, so that launching does not count: in a training step a GPU's queue hides it.
    """

    def __init__(self, device: torch.device, *, queued: bool = True) -> None:
        self.device, self.queued = device, queued
        self.flush = torch.empty(max(1, 2 * l2_bytes(device)), dtype=torch.int8, device=device)

    def seconds(self, call: Call, index: int) -> float:
        """One call's time: between two events on a GPU, by the wall clock elsewhere."""
        if self.device.type != "cuda":
            started = time.perf_counter()
            call(index)
            return time.perf_counter() - started
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.flush.zero_()
        if self.queued:
            torch.cuda._sleep(HEAD_START)
        begin.record()
        call(index)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def interleaved(self, calls: Mapping[str, Call], sets: int, seconds: float) -> dict[str, list[float]]:
        """Samples in seconds of every call, in rounds, for about ``seconds`` in all. A slow call sits out rounds evenly spread.

        A call that runs out of memory among the others is left out of the answer.
        """
        wanted: dict[str, int] = {}
        for name, call in calls.items():
            with contextlib.suppress(torch.OutOfMemoryError):
                wanted[name] = min(MOST, max(LEAST, int(seconds / len(calls) / max(self.seconds(call, 0), 1e-7))))
        rounds = max(wanted.values(), default=0)
        samples: dict[str, list[float]] = {name: [] for name in wanted}
        for i in range(rounds):
            for name in list(samples):
                if i * wanted[name] // rounds >= len(samples[name]):
                    try:
                        samples[name].append(self.seconds(calls[name], i % sets))
                    except torch.OutOfMemoryError:
                        del samples[name]
        return samples


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """Most memory that a call holds beyond what was held before it, its results included; None on a CPU, where none is counted."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = call(0)
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    del result
    return peak


def host_syncs(call: Call, device: torch.device) -> int | None:
    """How often a call waits for the GPU, as far as torch can tell; None on a CPU."""
    if device.type != "cuda":
        return None
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call(0)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    # Not "synchronizing" alone, which stands also in what torch says once of the mode itself.
    return sum("called a synchronizing" in str(one.message) for one in caught)


def graphed(call: Call, sets: int) -> Call:
    """The same calls as CUDA graphs, one for each input set: what a decoding step that launches nothing else pays."""
    stream, graphs, kept = torch.cuda.Stream(), [], []
    stream.wait_stream(torch.cuda.current_stream())
    # Captured on it too, and within its context: a capture that fails leaves the stream it was on as the current one.
    with torch.cuda.stream(stream):
        for index in range(sets):
            call(index)
        for index in range(sets):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                kept.append(call(index))
            graphs.append(graph)
    torch.cuda.current_stream().wait_stream(stream)

    def replay(index: int) -> object:
        graphs[index].replay()
        return kept[index]

    return replay
