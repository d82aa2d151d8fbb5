"""Proves and times the kernels and the engine on one machine within a time: GPU tests, a checked run, then every suite, each by itself.

A group that crashes loses only what it had not measured; a rerun merges into what is there.
Without a GPU it says so and runs toy sizes, whose results are marked "cpu" and lie in a folder of their own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from harness import goals, gpu_tests
from harness.results import ROOT, Result, key, machine, merge, place, table, write
from harness.runner import not_run, run
from harness.suite import Suite, device_here

# The order of what is wanted first: the goals of the whole block depend on the first four.
PROOFS = ("tests", "sanitizer")
"""What is right or wrong and must have been run to its end."""
SUITES = (
    "row_topk",
    "linear_topk",
    "loss_block",
    "union_kl",
    "embed_merge",
    "sparse_grad",
    "log_softmax",
    "linear_kl",
    "decode_step",
    "engine",
    "step",
)
GROUPS = (*PROOFS, *SUITES)
SHARES = {"tests": 8, "sanitizer": 3, "linear_topk": 2, "loss_block": 4, "union_kl": 2, "engine": 4}
"""Parts of the time, where a group takes more than one; what a group leaves goes to the later ones."""
GRACE, LAST = 120.0, 30.0
"""Seconds that a group may overrun its share by, to finish the shape that it had begun, and that the whole may overrun its time by."""
CANNOT = re.compile(r"^=+ .*(Device not supported|Unable to attach|not supported on this).*$", flags=re.MULTILINE)
"""What compute-sanitizer says where it can look at nothing, and so finds nothing."""
SMALL_RUN = ROOT / "benchmarks" / "small_run.py"


def load(group: str) -> Suite:
    """A group's suite."""
    return importlib.import_module(f"bench_{group}").SUITE


def measure(group: str, seconds: float, out: Path, skip: int = 0) -> int:
    """In a group's own process: runs its suite from a shape on and writes its rows after every shape."""
    rows: list[Result] = []

    def keep(new: list[Result]) -> None:
        rows.extend(new)
        write(out, {"rows": rows})

    everything = list(run(load(group), seconds=seconds, skip=skip, on_rows=keep))
    write(out, {"rows": everything})
    return 1 if any(row.get("ours") and str(row["check"]).startswith("failed") for row in everything) else 0


def timeout(command: list[str], seconds: float, log: Path) -> tuple[int | None, str]:
    """A command's exit status, None when it ran out of time, and the end of what it said."""
    with log.open("w", encoding="utf-8") as said:
        # A session of its own, to end with all that it started.
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        status: int | None = process.wait(seconds)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return status, log.read_text(encoding="utf-8", errors="replace")[-4000:]


def run_sanitizer(seconds: float, log: Path) -> Result:
    """A small run of the kernels in which every access to memory is checked."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        return {"state": "not run", "why": "compute-sanitizer is neither on the PATH nor in /usr/local/cuda/bin"}
    # The script alone and not the compilers that it starts; memory, not calls of the driver that libraries try and do without.
    options = ["--tool", "memcheck", "--error-exitcode", "9", "--target-processes", "application-only", "--report-api-errors", "no"]
    status, said = timeout([tool, *options, sys.executable, str(SMALL_RUN)], seconds, log)
    found = re.findall(r"^=+ (ERROR SUMMARY: .*)$", said, flags=re.MULTILINE)
    if status and (
        refused := re.search(r"^=+ .*(Device not supported|Unable to attach|not supported on this).*$", said, flags=re.MULTILINE)
    ):
        return {"state": "not run", "why": refused[0].strip("= ")}
    state = "out of time" if status is None else "passed" if status == 0 else "failed"
    return {"state": state, "why": found[-1] if found else "", **({"said": said} if status else {})}


def prove(group: str, seconds: float, log: Path, device: str) -> Result:
    """Runs one of ``PROOFS``; on a CPU there is nothing for them to run on."""
    if device != "cuda":
        return {"state": "not run", "why": "no GPU"}
    return gpu_tests.run_tests(seconds, log.with_suffix("")) if group == "tests" else run_sanitizer(seconds, log)


def run_group(group: str, seconds: float, most: float, log: Path) -> tuple[Result, list[Result]]:
    """A suite in a process of its own; a process that dies at a shape is followed by one that goes on after it.

    No shape is begun after ``seconds``; after ``most`` the process is ended.
    """
    last = time.monotonic() + most
    ends, rows, said = time.monotonic() + seconds, [], []
    try:
        shapes = load(group).shapes(device_here().type)
    except Exception:
        # A package of another version, say: the other groups may do without it.
        return {"state": "crashed", "said": traceback.format_exc()[-4000:]}, []
    done, status = 0, None
    with tempfile.TemporaryDirectory() as folder:
        while done < len(shapes):
            left = ends - time.monotonic()
            out = Path(folder) / f"{done}.json"
            command = [sys.executable, __file__, "--measure", group, "--seconds", str(left), "--skip", str(done), "--rows", str(out)]
            status, end = timeout(command, min(max(left, 0) + GRACE, last - time.monotonic()), log)
            new = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.exists() else []
            rows += new
            # Status 1 with rows of every shape is a check that failed; with fewer, and any other status, the process died.
            done += len({key(row)[1] for row in new})
            if done >= len(shapes) or status is None:
                break
            said.append(end)
            shape = shapes[done].sizes()
            rows.append(not_run(group, shape, device_here().type, f"the process ended with status {status}"))
            done += 1
    if any(row.get("ours") and str(row["check"]).startswith("failed") for row in rows):
        state = "check failed"
    else:
        state = "crashed" if said else "out of time" if status is None else "done"
    return {"state": state, **({"said": "\n".join(said)} if said else {})}, rows


def suite(options: argparse.Namespace) -> int:
    """Runs the groups that were asked for and prints the tables; 1 when a test or a check of ours failed, when a test was not finished, or
    when a group crashed."""
    ends, device = time.monotonic() + 60 * options.minutes, device_here()
    about = machine(device, options.commit)
    path = place(options.out, about)
    result: dict[str, Any] = {"name": "kernels", **about, "groups": {}, "rows": []}
    if path.exists():
        result = json.loads(path.read_text(encoding="utf-8"))
    if device.type == "cpu":
        print("No GPU is seen: the suites run at toy sizes on the CPU. Their times say nothing about a GPU.", flush=True)
    wanted = [group for group in GROUPS if options.only is None or group in options.only]
    for i, group in enumerate(wanted):
        left = ends - time.monotonic()
        seconds = left * SHARES.get(group, 1) / sum(SHARES.get(later, 1) for later in wanted[i:])
        if left < 5:
            # What an earlier run measured stands; what it proved, it proved of that day's code.
            proof = group in PROOFS and device.type == "cuda"
            state: Result = {"state": "out of time", "why": "not begun"} if proof else {"state": "not run", "why": "out of time"}
            if proof or group not in result["groups"]:
                result["groups"][group] = state
            print(f"{group}: {state['state']}, {state['why']}", flush=True)
            continue
        log = path.parent / "logs" / f"{group}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        if group in PROOFS:
            state = prove(group, seconds, log, device.type)
        else:
            state, rows = run_group(group, seconds, left + LAST, log)
            for row in rows:
                row["gpu"] = about["gpu"]
            result["rows"] = merge(result["rows"], rows)
        if state["state"] in ("passed", "done"):
            log.unlink(missing_ok=True)
        result["groups"][group] = {**state, "seconds": round(time.monotonic() - started, 1)}
        result["goals"] = goals.lines(result["rows"])
        write(path, result)
        print(f"{group}: {state['state']} {state.get('why', '')}".rstrip() + f" ({time.monotonic() - started:.0f} s)", flush=True)
    write(path, result)
    report(result, path)
    states = {group: result["groups"].get(group, {}).get("state") for group in wanted}
    unfinished = any(states.get(group) == "out of time" for group in PROOFS)
    return 1 if unfinished or {"failed", "check failed", "crashed"} & set(states.values()) else 0


def report(result: Result, path: Path) -> None:
    """The short table and the goals, last of all that is printed."""
    print(f"\n{result['gpu'] or result['hardware']['cpu']}, {result['date']}, commit {result['commit'][:12]}: {path}\n")
    print("\n".join(table(row for row in result["rows"] if row.get("ours") or "error" in row or str(row["check"]).startswith("failed"))))
    print("\nGoals" + ("" if result["device"] == "cuda" else " (a GPU's; none was seen)"))
    print("\n".join(goals.lines(result["rows"])))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=25.0, help="for everything; a group that has begun a shape finishes it")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="results go to OUT/<gpu name>/<date>.json")
    parser.add_argument("--only", action="append", choices=GROUPS, help="a group; may be given several times")
    parser.add_argument("--commit", help="the code's commit, where the folder is no git checkout")
    parser.add_argument("--measure", choices=SUITES, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    parser.add_argument("--skip", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(options.measure, options.seconds, options.rows, options.skip)
    return suite(options)


if __name__ == "__main__":
    sys.exit(main())
