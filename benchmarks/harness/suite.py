"""A suite: one op's shapes, inputs, oracle and providers, and how they become rows of a result: checked first, then timed.

A provider whose check fails is not timed, so that no speed can stand beside a wrong answer; what is not installed is left out; running out
of memory is a result.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
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
    once: bool = False
    """Whether each provider is called once, and that call checked: where it takes seconds, and begins with cold caches."""


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


def in_turn(suite: Suite, providers: list[Provider]) -> list[Provider]:
    """Ours first, then the suite's baseline, then the others, what compiles last: the order in which a time that ends is best spent."""

    def rank(provider: Provider) -> int:
        return 0 if provider.ours else 1 if provider.name == suite.baseline else 3 if "compile" in provider.name else 2

    return sorted(providers, key=rank)


def measure_shape(
    suite: Suite, shape: Shape, clock: Clock, seconds: float, on_rows: Callable[[list[Row], str], None] | None = None
) -> list[Row]:
    """Checks, then times, all providers and ceilings at one shape for about ``seconds``; a row each.

    Ours and the ceilings are timed first, in turns; then each other provider is checked and timed in turns with the first of ours, so that
    one that hangs or dies costs the others nothing.

    Args:
        on_rows: is called with the shape's rows so far and with the provider that comes next, before each of them.
    """
    if suite.once:
        return measure_once(suite, shape, clock.device, on_rows)
    device = clock.device
    try:
        sets = prepared(suite, shape, device)
        oracle = suite.oracle(shape, sets[0])
    except torch.OutOfMemoryError:
        why = "out of memory while making the inputs"
        return [{**_base(suite, shape, device), "provider": "all", "ours": False, "check": "not run", "error": why}]
    tell = on_rows or (lambda rows, coming: None)
    providers = in_turn(suite, suite.providers(shape, device))
    ours, others = ([p for p in providers if p.ours], [p for p in providers if not p.ours])
    sheet, calls = Sheet(suite, shape), dict[str, Call]()
    for provider in ours:
        tell(sheet.all(), provider.name)
        calls.update(_checked(sheet, provider, sets, oracle, device))
    with_ceilings = calls | _ceiling_calls(suite, shape, device)
    sheet.add(clock.interleaved(with_ceilings, len(sets), seconds / 2 if others else seconds), lead=None)
    del with_ceilings
    _release(device)
    lead = next((name for name in calls if name in sheet.relative), None)
    for provider in others:
        tell(sheet.all(), provider.name)
        theirs = _checked(sheet, provider, sets, oracle, device)
        if theirs:
            beside = {lead: calls[lead]} if lead is not None else {}
            sheet.add(clock.interleaved({**beside, **theirs}, len(sets), seconds / 2 / len(others)), lead=lead)
        del theirs
        _release(device)
    del sets, calls, oracle
    _release(device)
    return sheet.all()


def measure_once(suite: Suite, shape: Shape, device: torch.device, on_rows: Callable[[list[Row], str], None] | None = None) -> list[Row]:
    """A row of each provider, called once at one shape; the host's clock runs until the device is done. See ``measure_shape``."""
    tell, sheet = on_rows or (lambda rows, coming: None), Sheet(suite, shape)
    try:
        x = suite.inputs(shape, device, 0)
    except (ImportError, torch.OutOfMemoryError) as error:
        return [{**_base(suite, shape, device), "provider": "all", "ours": False, "check": "not run", "error": str(error).splitlines()[0]}]
    oracle, lead = suite.oracle(shape, x), None
    for provider in in_turn(suite, suite.providers(shape, device)):
        tell(sheet.all(), provider.name)
        row: Row = {
            **_base(suite, shape, device),
            "provider": provider.name,
            "ours": provider.ours,
            "note": provider.note,
            "check": "not run",
        }
        sheet.rows.append(row)
        taken: list[float] = []

        def timed(inputs: Any, provider: Provider = provider, taken: list[float] = taken) -> Any:
            begun = time.perf_counter()
            result = provider.run(inputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - begun)
            return result

        try:
            wrong = complaint(replace(provider, run=timed), x, oracle)
        except torch.OutOfMemoryError:
            row["error"] = "out of memory"
        else:
            row["check"] = "passed" if wrong is None else f"failed: {wrong}"
            if wrong is None:
                sheet.add({provider.name: taken, **({lead: [sheet.seconds(lead)]} if lead else {})}, lead=lead)
                lead = lead or (provider.name if provider.ours else None)
        _release(device)
    return sheet.all()


def check_shape(suite: Suite, shape: Shape, device: torch.device) -> list[Row]:
    """Checks ours at one shape and times nothing; a row each."""
    x = suite.inputs(shape, device, 0)
    oracle, rows = suite.oracle(shape, x), list[Row]()
    for provider in (one for one in suite.providers(shape, device) if one.ours):
        wrong = complaint(provider, x, oracle)
        check = "passed" if wrong is None else f"failed: {wrong}"
        rows.append({**_base(suite, shape, device), "provider": provider.name, "ours": True, "check": check})
    del x, oracle
    _release(device)
    return rows


def _base(suite: Suite, shape: Shape, device: torch.device) -> Row:
    return {"group": suite.name, "shape": shape.sizes(), "device": device.type}


def _checked(sheet: Sheet, provider: Provider, sets: list[Any], oracle: Any, device: torch.device) -> dict[str, Call]:
    """Appends a provider's row, and one for its CUDA graph; what of them is right and can be timed, by name."""
    row: Row = {**_base(sheet.suite, sheet.shape, device), "provider": provider.name, "ours": provider.ours, "note": provider.note}
    sheet.rows.append(row)
    call: Call = functools.partial(_on, provider.run, sets)
    calls: dict[str, Call] = {}
    try:
        wrong = complaint(provider, sets[0], oracle)
        row["check"] = "passed" if wrong is None else f"failed: {wrong}"
        if wrong is not None:
            return calls
        row["peak_bytes"], row["host_syncs"] = peak_bytes(call, device), host_syncs(call, device)
        if row["peak_bytes"] is not None:
            row["extra_bytes"] = row["peak_bytes"] - sheet.suite.work(sheet.shape).excluded_peak
        if provider.extra is not None:
            row.update(provider.extra(sets[0]))
        calls[provider.name] = call
        if provider.graph and device.type == "cuda":
            name = f"{provider.name} graph"
            sheet.rows.append({**row, "provider": name, "peak_bytes": None, "extra_bytes": None, "host_syncs": 0})
            replay, wrong = replayed(provider, call, sets, oracle)
            sheet.rows[-1]["check"] = "passed" if wrong is None else f"failed: {wrong}"
            if replay is not None and wrong is None:
                calls[name] = replay
    except torch.OutOfMemoryError:
        row.update({"check": row.get("check", "not run"), "error": "out of memory"})
    _release(device)
    return calls


def _ceiling_calls(suite: Suite, shape: Shape, device: torch.device) -> dict[str, Call]:
    """The ceilings that there is memory for, by name."""
    calls: dict[str, Call] = {}
    for name in suite.ceilings:
        if name != "copy" and not shape.H:
            continue
        try:
            calls[name] = ceilings.make(name, shape, suite.work(shape).read, device)
            calls[name](0)
        except torch.OutOfMemoryError:
            calls.pop(name, None)
            _release(device)
    return calls


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


class Sheet:
    """The rows of one shape as its providers are timed, a few of them at a sitting."""

    def __init__(self, suite: Suite, shape: Shape) -> None:
        self.suite, self.shape = suite, shape
        self.rows: list[Row] = []
        self.relative: dict[str, float] = {}
        """Each provider's time as a multiple of our first one's at the same sitting; in seconds where none of ours was timed."""
        self._ceilings: list[Row] = []
        self._seconds: dict[str, float] = {}

    def all(self) -> list[Row]:
        """The rows so far, the ceilings' last."""
        return [*self.rows, *self._ceilings]

    def add(self, samples: dict[str, list[float]], *, lead: str | None) -> None:
        """Fills in times, rates and ratios from the samples of one sitting.

        Args:
            lead: the provider of ours that was timed once more beside the new ones; None at the first sitting, where the first is found.
        """
        taken = {name: percentiles(found) for name, found in samples.items()}
        self._add_ceilings(taken, samples)
        new = [row for row in self.rows if "seconds" not in row and row["provider"] != lead]
        first = lead or next((row["provider"] for row in new if row["ours"] and row["provider"] in taken), None)
        unit = taken[first]["p50"] if first in taken else 1.0 if first is None else None
        for row in new:
            name = row["provider"]
            if name in taken:
                self._time(row, taken[name], len(samples[name]))
                if unit is not None:
                    self.relative[name] = taken[name]["p50"] / unit
            elif row["check"] == "passed":
                row.setdefault("error", "out of memory beside the others")
        self._compare()

    def seconds(self, name: str) -> float:
        """The time of a provider that was timed."""
        return next(float(row["seconds"]["p50"]) for row in self.rows if row["provider"] == name)

    def _add_ceilings(self, taken: dict[str, dict[str, float]], samples: dict[str, list[float]]) -> None:
        work = self.suite.work(self.shape)
        for name in (name for name in self.suite.ceilings if name in taken):
            rates = ceilings.rates(name, self.shape, work.read, taken[name]["p50"])
            # What copying the op's own bytes would take; the timed copy may have been of fewer.
            self._seconds[name] = work.read / rates["gb_s"] / 1e9 if name == "copy" else taken[name]["p50"]
            self._ceilings.append(
                {
                    "group": self.suite.name,
                    "shape": self.shape.sizes(),
                    "device": self.rows[0]["device"],
                    "provider": f"ceiling: {name}",
                    "ours": False,
                    "note": ceilings.NOTES[name],
                    "check": "none needed",
                    "seconds": taken[name],
                    "samples": len(samples[name]),
                    **rates,
                }
            )

    def _time(self, row: Row, taken: dict[str, float], count: int) -> None:
        """A row's time, rates and shares of the ceilings."""
        work = self.suite.work(self.shape)
        row["seconds"], row["samples"] = taken, count
        row["gb_s"] = work.read / taken["p50"] / 1e9
        if work.flop:
            row["tflop_s"] = work.flop / taken["p50"] / 1e12
        for name, seconds in self._seconds.items():
            row[f"percent_of_{name}"] = 100 * seconds / taken["p50"]
        if self.suite.columns is not None:
            row.update(self.suite.columns(self.shape, row))

    def _compare(self) -> None:
        """Ratios between medians of one sitting, or of two that share our first provider."""
        baseline = self.suite.baseline or next((row["provider"] for row in self.rows if not row["ours"]), "")
        for row in self.rows:
            mine = self.relative.get(row["provider"])
            if mine is None:
                continue
            if baseline in self.relative:
                row["ratio"], row["ratio_to"] = self.relative[baseline] / mine, baseline
            if row["ours"]:
                row["times_faster_than"] = {other: one / mine for other, one in self.relative.items() if other != row["provider"]}


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
