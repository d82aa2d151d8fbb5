"""The kernels in Triton's interpreter: the tests of this folder that choose a backend, and those in ``interpret``.

A process that interprets kernels can do nothing else with them, so they run in processes of their own, one for each group of ops.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GROUPS = {
    "topk": ("row_topk", "linear_topk", "shim"),
    "union": ("gather_linear", "sparse_grad", "union_kl", "opd_union_kl", "union_topk_kl"),
    "decode": ("add_rms_norm", "rope_cache", "decode_attention", "swiglu"),
    "rest": (),
}
"""Group → ops, by the names of their test files; "rest" takes every op that no other group has."""


def files_of(group: str) -> list[str]:
    files = [path for path in sorted([*HERE.glob("test_*.py"), *HERE.glob("interpret/test_*.py")]) if path.name != Path(__file__).name]
    named = {op for ops in GROUPS.values() for op in ops}
    chosen = [path for path in files if (path.stem[5:] in GROUPS[group] if GROUPS[group] else path.stem[5:] not in named)]
    return [str(path.relative_to(ROOT)) for path in chosen]


def interpret(group: str, marks: str) -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5", "-m", marks, *files_of(group)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    print(run.stdout[-6000:])
    if run.returncode == pytest.ExitCode.NO_TESTS_COLLECTED:
        pytest.skip(f"the group {group!r} has no test that is {marks}")
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert re.search(r"\d+ passed", run.stdout), run.stdout[-2000:]


@pytest.mark.parametrize("group", GROUPS)
def test_kernels_in_the_interpreter(group):
    interpret(group, "not slow and not gpu")


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_kernels_in_the_interpreter_at_length(group):
    interpret(group, "slow and not gpu")
