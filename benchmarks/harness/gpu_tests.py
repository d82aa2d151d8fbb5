"""The GPU tests, several files at once: most of their time goes into compiling kernels, for which a machine has cores enough.

Tests that want the GPU's memory to themselves run alone. The result is read from what pytest says as it goes, so that a test that failed
has failed even where the time ended the others.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.results import ROOT, Result

AT_ONCE = max(1, min(8, (os.cpu_count() or 1) // 2))
"""Processes: each compiles on one core, and its assembler on another."""
PYTEST = (sys.executable, "-m", "pytest", "-v", "-rfE", "-m", "gpu", "-p", "no:cacheprovider", "--maxfail=20")
"""Says how each test came out as it ends."""
ALONE = "memory or beyond_32_bits"
"""Tests by name (pytest's -k) that fill the GPU's memory or look at how much of it there is."""
OUTCOME = re.compile(r"^(\S+\.py::.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
BEGUN = re.compile(r"^\S+\.py::\S+", re.MULTILINE)


@dataclass(frozen=True)
class Job:
    """One pytest process."""

    name: str
    """Of its log."""
    arguments: tuple[str, ...]
    """What to test."""


def test_files() -> tuple[list[str], list[str]]:
    """Files with tests for a GPU, and those of them that need hypothesis where it is not installed."""
    tests = ROOT / "tests"
    kernels, others = [*tests.glob("kernels/test_*.py"), *tests.glob("kernels/gpu/test_*.py")], tests.glob("*/test_*_gpu.py")
    found = sorted(kernels) + sorted(others)
    files = [path for path in found if path.stem != "test_triton_interpreter"]
    bare = importlib.util.find_spec("hypothesis") is None
    left = [str(path.relative_to(ROOT)) for path in files if bare and "hypothesis" in path.read_text(encoding="utf-8")]
    return [name for path in files if (name := str(path.relative_to(ROOT))) not in left], left


def jobs(files: Sequence[str]) -> tuple[list[Job], list[Job]]:
    """(what may run at once: the kernels' files, each by itself; what runs after it, one by one: ``ALONE`` of them, then whole models)."""
    kernels = [file for file in files if not file.endswith("_gpu.py")]
    models = [file for file in files if file.endswith("_gpu.py")]
    shared = [Job(file.removesuffix(".py").replace("/", "-"), (file, "-k", f"not ({ALONE})")) for file in kernels]
    alone = [Job("alone", (*kernels, "-k", ALONE))] if kernels else []
    return shared, [*alone, *(Job(file.removesuffix(".py").replace("/", "-"), (file,)) for file in models)]


def run_jobs(waiting: Sequence[Job], at_once: int, ends: float, folder: Path) -> dict[str, int | None]:
    """Name → exit status, None for a job that the time (of ``time.monotonic``) kept from ending or from starting.

    A job writes to FOLDER/<name>.log.
    """
    status: dict[str, int | None] = {job.name: None for job in waiting}
    left = list(waiting)
    going: dict[str, subprocess.Popen[bytes]] = {}
    try:
        while (left or going) and time.monotonic() < ends:
            while left and len(going) < at_once:
                job = left.pop(0)
                # A session of its own, to end with all that it started.
                with (folder / f"{job.name}.log").open("wb") as said:
                    going[job.name] = subprocess.Popen(
                        [*PYTEST, *job.arguments], cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
                    )
            for name, process in list(going.items()):
                if process.poll() is not None:
                    status[name] = process.returncode
                    del going[name]
            time.sleep(0.05)
    finally:
        for process in going.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return status


def run_tests(seconds: float, folder: Path) -> Result:
    """Runs the tests within a time; logs of what did not pass stay in FOLDER.

    The state is "failed" where a test failed or a process died, else "out of time" where a test was not run for that, else "passed".
    """
    ends = time.monotonic() + seconds
    folder.mkdir(parents=True, exist_ok=True)
    files, left_out = test_files()
    shared, alone = jobs(files)
    for job in (*shared, *alone):
        (folder / f"{job.name}.log").unlink(missing_ok=True)  # of an earlier run; this one may not come to all
    status = run_jobs(shared, AT_ONCE, ends, folder) | run_jobs(alone, 1, ends, folder)
    counts: dict[str, int] = dict.fromkeys(("passed", "failed", "error", "skipped", "xfail", "xpass"), 0)
    died, late, said = [], [], []
    for name, code in status.items():
        log = folder / f"{name}.log"
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        outcomes = OUTCOME.findall(text)
        for _, outcome in outcomes:
            counts[outcome.lower()] += 1
        # The test in which a process died or was ended has no outcome.
        lasts = [match[0] for match in BEGUN.finditer(text) if OUTCOME.match(text, match.start()) is None]
        at = f" at {lasts[-1]}" if lasts else ""
        broken = [f"{outcome} {test}" for test, outcome in outcomes if outcome in ("FAILED", "ERROR")]
        if code is None:
            late.append(name + at)
        # 1 is a test that failed, 5 a file none of whose tests was chosen.
        elif code not in (0, 5) and not (code == 1 and broken):
            died.append(f"{name} ended with status {code}{at}")
        if broken or code not in (0, 5, None):
            said.append("\n".join([*broken, text[-3000:]]))
        elif code is not None:
            log.unlink(missing_ok=True)
    if not any(counts.values()) and not late:
        died.append("no test was found")
    why = [", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count), *died]
    why += [f"not finished: {', '.join(late)}"] if late else []
    why += [f"left out because hypothesis is not installed: {', '.join(left_out)}"] if left_out else []
    state = "failed" if said or died else "out of time" if late else "passed"
    return {"state": state, "why": "; ".join(filter(None, why)), **({"said": "\n\n".join(said)} if said else {})}
