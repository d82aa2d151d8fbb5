"""A suite: one op's shapes, inputs, oracle and providers, and how they become rows of a result: checked first, then timed.

A provider whose check fails is not timed, so that no speed can stand beside a wrong answer; what is not installed is left out; running out
of memory is a result.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from shapes import Shape

from arkfast.device import choose_attention
from harness import ceilings
from harness.clock import Call, Clock, graphed, host_syncs, peak_bytes, percentiles, sets_needed

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One implementation of an op."""

    name: str
    run: Callable[[Any], Any]
    """Does the job on an input set; what it returns goes to ``check`` alone."""
    check: Callable[[Any, Any, Any], str | None]
    """(inputs, result, oracle) → what is wrong, None when nothing is."""
    note: str = ""
    """What a reader must know to compare it, such as a different objective."""
    ours: bool = False
    graph: bool = False
    """Also time it as a CUDA graph."""
    extra: Callable[[Any], Row] | None = None
    """Input set → more columns, such as what the data was like."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one call of any provider must do; other costs are overhead."""

    read: int
    """Bytes that must cross the memory's pins, reads and writes together."""
    flop: int = 0
    excluded_peak: int = 0
    """Bytes of results that any implementation holds, such as the head's gradient: not counted as extra memory."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One op's benchmark."""

    name: str
    shapes: Callable[[str], list[Shape]]
    """"cuda" or "cpu" → shapes, the most wanted first."""
    inputs: Callable[[Shape, torch.device, int], Any]
    """(shape, device, seed) → one set of random inputs."""
    set_bytes: Callable[[Shape], int]
    """Size of what differs between sets."""
    oracle: Callable[[Shape, Any], Any]
    """(shape, inputs) → what providers are checked against, by plain PyTorch in float64."""
    providers: Callable[[Shape, torch.device], list[Provider]]
    work: Callable[[Shape], Work]
    ceilings: tuple[str, ...] = ("copy",)
    """Of "copy", "mm" (the product that cannot be avoided) and "dense" (the dense student's three)."""
    baseline: str = ""
    """The provider whose time ``ratio`` divides; the first that is not ours by default."""
    columns: Callable[[Shape, Row], Row] | None = None
    """(shape, a provider's row with its times) → more columns that follow from them."""
    queued: bool = True
    """Whether launching is left out of the times, as a queue far ahead of the GPU hides it in training; it counts in decoding."""


@dataclass
class Entry:
    """A provider at a shape, as pytest and the suite see it."""

    suite: Suite
    shape: Shape
    provider: Provider
    device: torch.device
    oracles: dict[str, Any] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return f"{self.device.type}-{self.shape}-{self.provider.name}".replace(" ", "_")


def device_here() -> torch.device:
    """The GPU where there is one, else the CPU; attention is chosen as a run of arkfast chooses it, for every provider alike."""
    choose_attention()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def entries(suite: Suite, device: torch.device) -> Iterator[Entry]:
    """Every provider of every shape."""
    for shape in suite.shapes(device.type):
        for provider in suite.providers(shape, device):
            yield Entry(suite, shape, provider, device)


def complaint(provider: Provider, inputs: Any, oracle: Any) -> str | None:
    """What is wrong with a provider's answer; None when nothing is. Errors are complaints, but running out of memory passes through."""
    try:
        return provider.check(inputs, provider.run(inputs), oracle)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if torch.cuda.is_available() and "CUDA error" in str(error):
            raise
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def prepared(suite: Suite, shape: Shape, device: torch.device) -> list[Any]:
    """Input sets enough to leave no trace in the cache."""
    return [suite.inputs(shape, device, seed) for seed in range(sets_needed(suite.set_bytes(shape), device))]


def measure_shape(suite: Suite, shape: Shape, clock: Clock, seconds: float) -> list[Row]:
    """Checks, then times, all providers and ceilings at one shape for about ``seconds``; a row each."""
    device = clock.device
    base = {"group": suite.name, "shape": shape.sizes(), "device": device.type}
    try:
        sets = prepared(suite, shape, device)
        oracle = suite.oracle(shape, sets[0])
    except torch.OutOfMemoryError:
        return [{**base, "provider": "all", "ours": False, "check": "not run", "error": "out of memory while making the inputs"}]
    rows, calls = [], {}
    for provider in suite.providers(shape, device):
        row: Row = {**base, "provider": provider.name, "ours": provider.ours, "note": provider.note}
        rows.append(row)
        call: Call = functools.partial(_on, provider.run, sets)
        try:
            wrong = complaint(provider, sets[0], oracle)
            row["check"] = "passed" if wrong is None else f"failed: {wrong}"
            if wrong is not None:
                continue
            row["peak_bytes"], row["host_syncs"] = peak_bytes(call, device), host_syncs(call, device)
            if row["peak_bytes"] is not None:
                row["extra_bytes"] = row["peak_bytes"] - suite.work(shape).excluded_peak
            if provider.extra is not None:
                row.update(provider.extra(sets[0]))
            calls[provider.name] = call
            if provider.graph and device.type == "cuda":
                name = f"{provider.name} graph"
                rows.append({**row, "provider": name, "peak_bytes": None, "extra_bytes": None, "host_syncs": 0})
                replay, wrong = replayed(provider, call, sets, oracle)
                rows[-1]["check"] = "passed" if wrong is None else f"failed: {wrong}"
                if replay is not None and wrong is None:
                    calls[name] = replay
        except torch.OutOfMemoryError:
            row.update({"check": row.get("check", "not run"), "error": "out of memory"})
        _release(device)
    del oracle
    ceiling_calls = {}
    for name in suite.ceilings:
        if name != "copy" and not shape.H:
            continue
        try:
            ceiling_calls[name] = ceilings.make(name, shape, suite.work(shape).read, device)
            ceiling_calls[name](0)
        except torch.OutOfMemoryError:
            ceiling_calls.pop(name, None)
            _release(device)
    samples = clock.interleaved({**calls, **ceiling_calls}, len(sets), seconds)
    _fill(suite, shape, rows, samples)
    del sets, calls, ceiling_calls
    _release(device)
    return rows


def replayed(provider: Provider, call: Call, sets: list[Any], oracle: Any) -> tuple[Call | None, str | None]:
    """The provider as CUDA graphs, and what is wrong with what they answer."""
    try:
        replay = graphed(call, len(sets))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return None, f"no CUDA graph can be made of it ({str(error).splitlines()[0]})"
    return replay, provider.check(sets[0], replay(0), oracle)


def _on(run: Callable[[Any], Any], sets: list[Any], index: int) -> Any:
    return run(sets[index])


def _fill(suite: Suite, shape: Shape, rows: list[Row], samples: dict[str, list[float]]) -> None:
    """Adds times, rates and ratios to the rows of one shape and appends the ceilings' rows; all were measured side by side."""
    work = suite.work(shape)
    ceiling = {name: percentiles(samples[name])["p50"] for name in suite.ceilings if name in samples}
    if "copy" in ceiling:
        # What copying the op's own bytes would take; the timed copy may have been of fewer.
        ceiling["copy"] = work.read / ceilings.rates("copy", shape, work.read, ceiling["copy"])["gb_s"] / 1e9
    for row in rows:
        if row["provider"] not in samples:
            if row["check"] == "passed":
                row.setdefault("error", "out of memory beside the others")
            continue
        taken = percentiles(samples[row["provider"]])
        row["seconds"], row["samples"] = taken, len(samples[row["provider"]])
        row["gb_s"] = work.read / taken["p50"] / 1e9
        if work.flop:
            row["tflop_s"] = work.flop / taken["p50"] / 1e12
        for name in ceiling:
            row[f"percent_of_{name}"] = 100 * ceiling[name] / taken["p50"]
        if suite.columns is not None:
            row.update(suite.columns(shape, row))
    timed = [row for row in rows if "seconds" in row]
    baseline = suite.baseline or next((row["provider"] for row in rows if not row["ours"]), "")
    reference = next((row for row in timed if row["provider"] == baseline), None)
    for row in timed:
        if reference is not None:
            row["ratio"], row["ratio_to"] = reference["seconds"]["p50"] / row["seconds"]["p50"], baseline
        if row["ours"]:
            row["times_faster_than"] = {
                other["provider"]: other["seconds"]["p50"] / row["seconds"]["p50"] for other in timed if other is not row
            }
    for name in ceiling:
        taken = percentiles(samples[name])
        rows.append(
            {
                "group": suite.name,
                "shape": shape.sizes(),
                "device": rows[0]["device"],
                "provider": f"ceiling: {name}",
                "ours": False,
                "note": ceilings.NOTES[name],
                "check": "none needed",
                "seconds": taken,
                "samples": len(samples[name]),
                **ceilings.rates(name, shape, work.read, taken["p50"]),
            }
        )


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
