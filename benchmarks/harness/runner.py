"""Runs suites at all their shapes within a time, prints their tables, and is the command line of every bench_<op>.py.

Each suite decides in which order its shapes are timed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from harness.clock import Clock
from harness.goals import OUT_OF_TIME
from harness.results import machine, table, write
from harness.suite import Row, Suite, device_here, measure_shape

SECONDS = {"cuda": 2.0, "cpu": 0.3}
"""How long one shape is timed, all providers together."""


def not_run(group: str, shape: dict[str, int | str], device: str, why: str) -> Row:
    """The row of a shape without figures."""
    return {"group": group, "shape": shape, "device": device, "provider": "all", "ours": False, "check": "not run", "error": why}


def run(
    suite: Suite,
    *,
    seconds: float,
    skip: int = 0,
    limit: int | None = None,
    on_rows: Callable[[list[Row], str], None] | None = None,
) -> Iterator[Row]:
    """Rows of a suite, shape by shape, until ``seconds`` have passed; a shape that is begun is finished.

    Args:
        skip, limit: leave out so many shapes at the start; stop before the shape of this number.
        on_rows: is called with a shape's rows so far and the provider that comes next, before each provider, and with all and "" at last.
    """
    device = device_here()
    torch.manual_seed(0)
    clock, started = Clock(device, queued=suite.queued), time.monotonic()
    for shape in suite.shapes(device.type)[skip:limit]:
        if time.monotonic() - started > seconds:
            yield not_run(suite.name, shape.sizes(), device.type, OUT_OF_TIME)
            continue
        rows = measure_shape(suite, shape, clock, SECONDS[device.type], on_rows)
        if on_rows is not None:
            on_rows(rows, "")
        yield from rows


def main(suite: Suite) -> None:
    """``python benchmarks/bench_<op>.py``: prints the table of one suite; exit status 1 when a check of ours failed."""
    parser = argparse.ArgumentParser(description=f"Checks and times {suite.name} and what else computes it, side by side.")
    parser.add_argument("--seconds", type=float, default=300.0, help="no new shape is begun after so long")
    parser.add_argument("--shapes", type=int, help="only the first so many shapes")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    options = parser.parse_args()
    rows = list(run(suite, seconds=options.seconds, limit=options.shapes))
    print("\n".join(table(rows)))
    if options.out:
        write(options.out, {"name": suite.name, **machine(device_here(), None), "rows": rows})
    raise SystemExit(1 if any(row.get("ours") and str(row["check"]).startswith("failed") for row in rows) else 0)
