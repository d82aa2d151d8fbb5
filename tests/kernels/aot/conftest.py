"""Ahead-of-time compiles of every kernel: the fixtures that do it, and the table of what came out.

Every test that compiles is slow and is run by scripts/test_slow.sh. Where Triton is not installed, or interprets, they are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

ARCHITECTURES = (80, 89, 90, 100, 120)
_table: list[Any] = []


class Compile(Protocol):
    def __call__(self, call: Callable[[], object], *, spills: dict[str, int] | None = None, listed: bool = False) -> list[Any]:
        """Runs ``call``, compiles what it launches, fails on spills beyond ``spills`` (kernel → bytes) or too much shared memory; returns
        the ``Compiled`` records, with their instructions where ``listed``."""


@pytest.fixture(params=ARCHITECTURES, ids=lambda arch: f"sm_{arch}")
def arch(request: pytest.FixtureRequest) -> int:
    """A compute capability × 10."""
    return request.param


@pytest.fixture
def compile_launches(arch: int) -> Compile:
    """``compile_launches(lambda: op(..., backend="triton"))`` compiles for ``arch`` every kernel that the call launches on CPU tensors."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1: this process interprets kernels")
    name = "arkfast_aot"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "aot.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    aot = sys.modules[name]

    def run(call: Callable[[], object], *, spills: dict[str, int] | None = None, listed: bool = False) -> list[Any]:
        kernels = aot.compiled(call, arch, listed=listed)
        assert kernels, "the call launched no kernel"
        _table.extend(kernels)
        assert aot.problems(kernels, _older_spills(arch) | (spills or {})) == []
        return kernels

    return run


OLDER_SPILLS = {
    "gather_linear_hidden_grad": {90: 8},
    "weight_grad_runs": {80: 4, 90: 8},
    "linear_kl_rows": {89: 4, 120: 4},
    "row_log_softmax_fwd": {80: 4, 120: 4},
    "union_kl_sparse": {90: 84},
}
"""Kernel → architecture → bytes a thread that it spills under Triton 3.6 and 3.7 and not from 3.8 on. The assembler puts one or two words
aside so that one more block fits a multiprocessor (40, 48, 64, 72 or 96 registers). It comes from the code that those versions hand it:
with that code the assembler of Triton 3.9 spills as well. The words are stored and loaded once a row, or once a pass through a loop of
hundreds of instructions, so no configuration was changed for them. ``union_kl_sparse`` is held to 64 registers on 9.0, with 3 words put
aside for the plain divergences and 21 for the Jensen–Shannon one on the original's scores, once a position."""


def _older_spills(arch: int) -> dict[str, int]:
    import triton

    older = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8)
    return {kernel: spilled[arch] for kernel, spilled in OLDER_SPILLS.items() if arch in spilled} if older else {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _table:
        return
    import triton

    terminalreporter.section(f"kernels compiled ahead of time, Triton {triton.__version__}")
    terminalreporter.write_line(
        f"{'kernel':<24} {'sm':>4} {'registers':>9} {'spilled':>7} {'shared':>7} {'whole':>5} {'loop':>4} {'load':>4}  constants"
    )
    for row in sorted(set(_table), key=lambda row: (row.kernel, row.constants, row.arch)):
        listing = row.listing
        seen = f"{listing.whole:>5} {listing.loop:>4} {listing.load:>4}" if listing else f"{'–':>5} {'–':>4} {'–':>4}"
        figures = f"{row.arch:>4} {row.registers:>9} {row.spilled:>7} {row.shared:>7} {seen}"
        terminalreporter.write_line(f"{row.kernel:<24} {figures}  {row.constants}")
