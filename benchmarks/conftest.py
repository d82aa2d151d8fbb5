"""Lets ``pytest benchmarks --benchmark-only`` collect bench_<op>.py and run each provider at each shape after its check.

A test's name holds the device, so that ``--benchmark-compare`` never sets a GPU's figures against a CPU's. Modules without a SUITE are
collected as they are.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import torch
from harness.suite import Entry, complaint, device_here, entries, prepared

ROUNDS = {"cuda": 20, "cpu": 5}
collect_ignore = ["harness"]


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """bench_*.py are modules of tests here; one that is named on the command line is collected by pytest itself."""
    if file_path.suffix != ".py" or not file_path.name.startswith("bench_") or parent.session.isinitpath(file_path):
        return None
    # Some are scripts alone, and need packages that the machine at hand may lack.
    if "\ndef test_" not in file_path.read_text(encoding="utf-8"):
        return None
    return pytest.Module.from_parent(parent, path=file_path)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes ``entry`` runs for every provider and shape of its module's SUITE."""
    if "entry" in metafunc.fixturenames:
        found = list(entries(metafunc.module.SUITE, device_here()))
        metafunc.parametrize("entry", found, ids=[str(entry) for entry in found])


_last: dict[str, tuple[list[Any], Any]] = {}


def _inputs_and_oracle(entry: Entry) -> tuple[list[Any], Any]:
    """Those of the shape before are kept, since tests of a shape follow each other; no more, since they fill a GPU."""
    key = f"{entry.suite.name}-{entry.device}-{entry.shape}"
    if key not in _last:
        _last.clear()
        if entry.device.type == "cuda":
            torch.cuda.empty_cache()
        sets = prepared(entry.suite, entry.shape, entry.device)
        _last[key] = sets, entry.suite.oracle(entry.shape, sets[0])
    return _last[key]


@pytest.fixture
def timed(benchmark: Any) -> Callable[[Entry], None]:
    """Checks an entry, and times it when it is right."""

    def run(entry: Entry) -> None:
        torch.manual_seed(0)
        sets, oracle = _inputs_and_oracle(entry)
        wrong = complaint(entry.provider, sets[0], oracle)
        assert wrong is None, f"{entry.provider.name} at {entry.shape}: {wrong}; it was not timed"
        benchmark.group = f"{entry.suite.name} {entry.shape} on {entry.device.type}"
        benchmark.extra_info.update(device=entry.device.type, shape=entry.shape.sizes(), provider=entry.provider.name, check="passed")
        turn = itertools.cycle(sets)

        def once(inputs: Any) -> None:
            entry.provider.run(inputs)
            if entry.device.type == "cuda":
                torch.cuda.synchronize()

        benchmark.pedantic(once, setup=lambda: ((next(turn),), {}), rounds=ROUNDS[entry.device.type], warmup_rounds=1)

    return run
