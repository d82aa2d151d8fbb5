"""Proves and times the kernels and the engine on one machine within a time: GPU tests, a checked run, then every suite, each by itself.

A group that crashes loses only what it had not measured; a rerun merges into what is there.
Without a GPU it says so and runs toy sizes, whose results are marked "cpu" and lie in a folder of their own.
"""

from __future__ import annotations

import argparse
import faulthandler
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
from collections.abc import Sequence
from pathlib import Path

from harness import goals, gpu_tests, ranks, wheels
from harness.goals import OUT_OF_TIME
from harness.look import look
from harness.plan import CHECKS, LEAD, LOOK, MINUTES, Item, call_a, call_b, chosen, measured
from harness.results import ROOT, Result, key, machine, merge, place, slug, table, write
from harness.runner import not_run, run
from harness.suite import Suite, check_shape, device_here

# The order of what is wanted first: the goals of the whole block depend on the first four.
PROOFS = ("tests", "sanitizer")
"""What is right or wrong and must have been run to its end."""
SUITES = (
    "row_topk",
    "linear_topk",
    "loss_block",
    "union_kl",
    "embed_merge",
    "rotary",
    "sparse_grad",
    "log_softmax",
    "linear_kl",
    "decode_step",
    "engine",
    "rtfx",
    "step",
)
GROUPS = (*PROOFS, *SUITES)
SHARES = {"tests": 8, "sanitizer": 3, "linear_topk": 2, "loss_block": 4, "union_kl": 2, "engine": 4, "rtfx": 6}
"""Parts of the time, where a group takes more than one; what a group leaves goes to the later ones."""
GRACE, LAST = 120.0, 30.0
"""Seconds that a group may overrun its share by, to finish the shape that it had begun, and that the whole may overrun its time by."""
CANNOT = re.compile(r"^=+ .*(Device not supported|Unable to attach|not supported on this).*$", flags=re.MULTILINE)
"""What compute-sanitizer says where it can look at nothing, and so finds nothing."""
KERNELS = (*LEAD, "linear_kl", "embed_merge", "rotary", "decode_step")
"""Suites whose kernels call A checks at one shape each."""
WRONG = 3
"""Exit status of a first look at a wrong answer; Python's own for an error is 1."""
PROVIDER, CLOSING, LEAST = 60.0, 4.0, 3.0
"""Seconds that a provider of a call may take; that a call keeps for its report; below which no part is begun."""
SMALL_RUN = ROOT / "benchmarks" / "small_run.py"


def load(group: str) -> Suite:
    """A group's suite."""
    return importlib.import_module(f"bench_{group}").SUITE


def measure(items: Sequence[Item], options: argparse.Namespace) -> int:
    """In a process of its own: times items from one on, or only checks ours, and writes their rows before every provider and shape."""
    done: list[Result] = []
    ends, device = time.monotonic() + options.seconds, device_here()
    for number, item in enumerate(items[options.skip :], start=1):

        def keep(rows: list[Result], coming: str, number: int = number, done: list[Result] = done) -> None:
            # A provider that hangs ends the process, wherever it hangs; the next process goes on after it.
            faulthandler.dump_traceback_later(options.limit, exit=True)
            write(options.rows, {"rows": [*done, *rows], "complete": number - bool(coming), "coming": coming})

        keep([], "all")
        suite, left = load(item.group), ends - time.monotonic()
        if options.check_only:
            late = [not_run(item.group, item.shape.sizes(), device.type, OUT_OF_TIME)]
            done += check_shape(suite, item.shape, device) if left > 0 else late
        else:
            done += run(suite, seconds=left, skip=item.index, limit=item.index + 1, on_rows=keep)
        keep([], "")
    faulthandler.cancel_dump_traceback_later()
    return 1 if any(failed(row) for row in done) else 0


def first_look(options: argparse.Namespace) -> int:
    """In a process of its own: ``look``, whose rows are written one by one."""
    faulthandler.dump_traceback_later(options.limit, exit=True)
    rows = look(device_here(), lambda rows: write(options.rows, {"rows": rows}))
    faulthandler.cancel_dump_traceback_later()
    return WRONG if any(str(row["check"]).startswith("failed") and row["provider"] == "cuDNN off" for row in rows) else 0


def items_named(text: str) -> list[Item]:
    """``group:index,group:index …`` as ``run_items`` writes it."""
    pairs = (part.split(":") for part in text.split(","))
    return [Item(group, int(index), load(group).shapes(device_here().type)[int(index)]) for group, index in pairs]


def failed(row: Result) -> bool:
    """Whether a check of ours failed."""
    return bool(row.get("ours")) and str(row["check"]).startswith("failed")


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
    """A suite at all its shapes; see ``run_items``."""
    try:
        items = [Item(group, i, shape) for i, shape in enumerate(load(group).shapes(device_here().type))]
    except Exception:
        # A package of another version, say: the other groups may do without it.
        return {"state": "crashed", "said": traceback.format_exc()[-4000:]}, []
    return run_items(items, seconds, most, log)


def run_items(
    items: Sequence[Item], seconds: float, most: float, log: Path, *, grace: float = GRACE, more: Sequence[str] = ()
) -> tuple[Result, list[Result]]:
    """Items in a process of their own; a process that dies at one is followed by one that goes on after it.

    No item is begun after ``seconds``; ``grace`` later, and after ``most``, the process is ended. What it had measured by then stays.
    ``more`` goes to the process's command line.
    """
    last = time.monotonic() + most
    ends, rows, said = time.monotonic() + seconds, [], []
    done, status = 0, None
    with tempfile.TemporaryDirectory() as folder:
        while done < len(items):
            left = ends - time.monotonic()
            out = Path(folder) / f"{done}.json"
            wanted = ",".join(f"{item.group}:{item.index}" for item in items)
            command = [sys.executable, __file__, "--measure", wanted, "--seconds", str(left), "--skip", str(done), "--rows", str(out)]
            command += more
            most_now = min(max(left, 0) + grace, last - time.monotonic())
            if most_now <= 0:
                rows += [not_run(item.group, item.shape.sizes(), device_here().type, OUT_OF_TIME) for item in items[done:]]
                status = None
                break
            status, end = timeout(command, most_now, log)
            held = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"rows": []}
            rows += held["rows"]
            # Status 1 with rows of every shape is a check that failed; with fewer, and any other status, the process died.
            done += held.get("complete", len({key(row)[1] for row in held["rows"]}))
            if done >= len(items):
                break
            why = OUT_OF_TIME if status is None else f"the process ended with status {status}"
            rows.append(lost(items[done], held, why))
            done += 1
            if status is None:
                rows += [not_run(item.group, item.shape.sizes(), device_here().type, OUT_OF_TIME) for item in items[done:]]
                break
            said.append(end)
    if any(failed(row) for row in rows):
        state = "check failed"
    else:
        state = "crashed" if said else "out of time" if status is None else "done"
    return {"state": state, **({"said": "\n".join(said)} if said else {})}, rows


def lost(item: Item, held: Result, why: str) -> Result:
    """The row of the provider at which a process ended, or of the whole shape where nothing of ours had been timed."""
    row = not_run(item.group, item.shape.sizes(), device_here().type, why)
    timed = [one for one in held["rows"] if key(one)[:2] == key(row)[:2] and one.get("ours") and "seconds" in one]
    return {**row, "provider": held["coming"]} if timed and held.get("coming") else row


def begun(options: argparse.Namespace) -> tuple[Result, Path, Result]:
    """(what it is measured on, the results' file, what it holds by now)."""
    device = device_here()
    about = machine(device, options.commit)
    path = place(options.out, about)
    result: Result = {"name": "kernels", **about, "groups": {}, "rows": []}
    if path.exists():
        result = json.loads(path.read_text(encoding="utf-8"))
    if device.type == "cpu":
        print("No GPU is seen: the suites run at toy sizes on the CPU. Their times say nothing about a GPU.", flush=True)
    return about, path, result


def call(options: argparse.Namespace) -> int:
    """One of the two calls within its time, to the second; 1 when a check of ours failed or could not be finished."""
    ends, device = time.monotonic() + 60 * options.minutes - CLOSING, device_here()
    about, path, result = begun(options)
    parts = call_a(device.type) if options.call == "A" else call_b(device.type, measured(result["rows"]))
    states = []
    for i, part in enumerate(parts):
        left = ends - time.monotonic()
        seconds = left * part.share / sum(later.share for later in parts[i:])
        started, rows = time.monotonic(), list[Result]()
        log = path.parent / "logs" / f"{slug(f'{options.call} {part.name}')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        if left < LEAST:
            state: Result = {"state": "out of time", "why": "not begun"}
        elif part.name == LOOK:
            state, rows = run_look(seconds, log)
        elif part.name == CHECKS:
            state = run_checks(device.type, seconds, log)
        else:
            state, rows = run_items(part.items, seconds, seconds, log, grace=0.0, more=("--limit", str(PROVIDER)))
        for row in rows:
            row["gpu"] = about["gpu"]
        result["rows"] = merge(result["rows"], rows)
        if state["state"] in ("passed", "done"):
            log.unlink(missing_ok=True)
        states.append((part.name, state["state"]))
        result["groups"][f"{options.call}: {part.name}"] = {**state, "seconds": round(time.monotonic() - started, 1)}
        result["goals"] = goals.lines(result["rows"])
        write(path, result)
        print(f"{part.name}: {state['state']} {state.get('why', '')}".rstrip() + f" ({time.monotonic() - started:.0f} s)", flush=True)
    report(result, path)
    unfinished = (CHECKS, "out of time") in states
    return 1 if unfinished or {"failed", "check failed", "crashed"} & {state for _, state in states} else 0


def run_look(seconds: float, log: Path) -> tuple[Result, list[Result]]:
    """The first look in a process of its own: what it had found when the time ended stays."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, __file__, "--measure", LOOK, "--rows", str(out), "--limit", str(seconds)]
        status, said = timeout(command, seconds, log)
        rows = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.exists() else []
    state = {0: "done", WRONG: "check failed", None: "out of time"}.get(status, "crashed")
    return {"state": state, **({"said": said} if status else {})}, rows


def run_checks(device: str, seconds: float, log: Path) -> Result:
    """Each kernel against its oracle at one shape, untimed."""
    items = [min(chosen(device, (group,), lambda shape: shape.core), key=lambda item: item.shape.T) for group in KERNELS]
    state, rows = run_items(items, seconds, seconds, log, grace=0.0, more=("--limit", str(PROVIDER), "--check_only"))
    wrong = [row for row in rows if failed(row) or row.get("error") not in (None, OUT_OF_TIME)]
    late = [row["group"] for row in rows if row.get("error") == OUT_OF_TIME]
    said = [f"{row['group']} {goals.named(row)} {row['provider']}: {row.get('error') or row['check']}" for row in wrong]
    said += [f"not reached: {', '.join(late)}"] if late else []
    why = "; ".join([f"{sum(row['check'] == 'passed' for row in rows)} of {len(items)} checked and right", *said])
    found = "failed" if wrong else "out of time" if late else "passed"
    return {"state": found, "why": why, **({"said": state["said"]} if "said" in state else {})}


def rehearse(only: str | None) -> int:
    """Prints what a GPU's calls would do and which part gives each goal its rows; 1 where a goal has none or no time is left for a part."""
    rows: list[Result] = []
    for name in [only] if only else sorted(MINUTES):
        parts = call_a("cuda") if name == "A" else call_b("cuda", measured(rows))
        whole = 60 * MINUTES[name] - CLOSING
        print(f"call {name}, {MINUTES[name]:g} minutes")
        for part in parts:
            print(f"  {part.name}: {whole * part.share / sum(one.share for one in parts):.0f} s")
            for item in part.items:
                print(f"    {item.group} {item.shape}")
                row = {**not_run(item.group, item.shape.sizes(), "cuda", ""), "ours": True, "seconds": {}, "part": f"{name}: {part.name}"}
                rows = merge(rows, [{**row, "check": "dry run"}])
    print("goals")
    bare = []
    for goal in goals.GOALS:
        found = list(dict.fromkeys(row["part"] for row in rows if row["group"] == goal.group and goal.where(row)))
        print(f"  {goal.id:<4} {goal.text}: {', '.join(found) or 'no row'}")
        bare += [] if found or only else [goal]
    return 1 if bare else 0


def suite(options: argparse.Namespace) -> int:
    """Runs the groups that were asked for and prints the tables; 1 when a test or a check of ours failed, when a test was not finished, or
    when a group crashed."""
    ends, device = time.monotonic() + 60 * options.minutes, device_here()
    about, path, result = begun(options)
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


def over_ranks(options: argparse.Namespace, counts: Sequence[int]) -> int:
    """Training over each number of processes; 1 when one failed or could not be finished. Numbers that the machine has no GPUs for are not
    run, which is no failure."""
    ends, device = time.monotonic() + 60 * options.minutes - CLOSING, device_here()
    about, path, result = begun(options)
    log = path.parent / "logs" / "ranks.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    started, rows = time.monotonic(), list[Result]()
    with tempfile.TemporaryDirectory() as folder:
        for row in ranks.measure(counts, device, Path(folder), lambda: ends - time.monotonic(), timeout, log):
            rows.append({**row, "gpu": about["gpu"]})
            result["rows"] = merge(result["rows"], rows)
            write(path, result)
    broken = [row for row in rows if failed(row) or (row["check"] == "not run" and row["shape"]["ranks"] <= ranks.there(device))]
    state = "check failed" if any(failed(row) for row in broken) else "crashed" if broken else "done"
    result["groups"][ranks.GROUP] = {"state": state, "seconds": round(time.monotonic() - started, 1)}
    result["goals"] = goals.lines(result["rows"])
    write(path, result)
    if not broken:
        log.unlink(missing_ok=True)
    print("\n".join(table(rows)) + f"\n{ranks.GROUP}: {state}; {path}", flush=True)
    return 1 if broken else 0


def report(result: Result, path: Path) -> None:
    """The short table and the goals, last of all that is printed."""
    print(f"\n{result['gpu'] or result['hardware']['cpu']}, {result['date']}, commit {result['commit'][:12]}: {path}\n")
    print(
        "\n".join(
            table(
                row
                for row in result["rows"]
                if row.get("ours") or row["group"] == LOOK or "error" in row or str(row["check"]).startswith("failed")
            )
        )
    )
    print("\nGoals" + ("" if result["device"] == "cuda" else " (a GPU's; none was seen)"))
    print("\n".join(goals.lines(result["rows"])))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, help="for everything: 25, where a group that has begun a shape finishes it; with --call "
                        "4.75 and 3.75, which are kept to")  # fmt: skip
    parser.add_argument("--call", choices=sorted(MINUTES), help="A: what decides, within 5 minutes; B: what A left, within 4")
    parser.add_argument("--dry_run", action="store_true", help="say what both calls, or --call, would do in which order; nothing is run")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="results go to OUT/<gpu name>/<date>.json")
    parser.add_argument("--only", action="append", choices=GROUPS, help="a group; may be given several times")
    parser.add_argument("--ranks", help="numbers of processes, such as 1,2,4,8: training over so many GPUs, and nothing else")
    parser.add_argument("--commit", help="the code's commit, where the folder is no git checkout")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    parser.add_argument("--skip", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=GRACE, help=argparse.SUPPRESS)
    parser.add_argument("--check_only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return first_look(options) if options.measure == LOOK else measure(items_named(options.measure), options)
    if options.dry_run:
        return rehearse(options.call)
    if options.call and options.only:
        parser.error("--call has its own choice of groups; leave --only out")
    if options.ranks and (options.call or options.only):
        parser.error("--ranks measures training over several processes alone; leave --call and --only out")
    try:
        counts = ranks.parsed(options.ranks) if options.ranks else []
    except ValueError:
        parser.error(f"--ranks {options.ranks}: give numbers of processes from 1 up, with commas between")
    options.minutes = options.minutes if options.minutes is not None else MINUTES[options.call] if options.call else 25.0
    try:
        with wheels.at_hand() as names:
            if names:
                print(f"From {wheels.VARIABLE}: {', '.join(names)}", flush=True)
            return over_ranks(options, counts) if counts else call(options) if options.call else suite(options)
    except wheels.WheelsError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
