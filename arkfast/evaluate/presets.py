"""Several test sets with one model: every input checked first, jobs spread over all devices, one verdict over all of them.

A device's process evaluates one preset after another with one model; scores are read back from the summaries that it wrote.
``scripts/evaluate_presets.sh`` starts this.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from arkfast.evaluate.overview import write_page
from arkfast.evaluate.preset_jobs import Job, Settings, check, check_gpus, devices, fetched
from arkfast.evaluate.preset_processes import Runner
from arkfast.evaluate.summary import markdown, read_summary
from arkfast.files import streams, write_text
from arkfast.records import InputError, JsonObject, JsonRow

_TAIL = 8  # lines of a failed job's log that are shown


@dataclass
class _Pool:
    """Jobs that wait, and one thread for each device that takes the next of them."""

    settings: Settings
    environment: Mapping[str, str]
    python: str
    waiting: deque[Job]
    runners: list[Runner] = field(default_factory=list)
    stopped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def work(self, device: str) -> None:
        runner = Runner(self.settings, self.environment, self.python, device)
        with self.lock:
            self.runners.append(runner)
        while True:
            with self.lock:
                if self.stopped or not self.waiting:
                    break
                job = self.waiting.popleft()
                job.device = device
                started = time.monotonic()
                if not self._start(job, runner):
                    continue
            code = runner.wait()
            with self.lock:
                job.seconds = time.monotonic() - started
                job.code = None if self.stopped else code
                print(f"[{job.outcome().upper()}] preset={job.preset} seconds={job.seconds:.0f}", flush=True)
        runner.close()

    def _start(self, job: Job, runner: Runner) -> bool:
        print(f"[LAUNCH] gpu={job.device} preset={job.preset} input={job.input} output={job.output} log={job.log}", flush=True)
        try:
            pid = runner.start(job)
        except (OSError, InputError) as error:  # no such interpreter, a full disk
            job.code = 127
            print(f"[FAILED] preset={job.preset}: {error}", file=sys.stderr, flush=True)
            return False
        try:
            write_text(job.pid, f"{pid}\n")
        except InputError as error:  # the job runs all the same
            print(f"[WARNING] preset={job.preset}: {error}", file=sys.stderr, flush=True)
        return True

    def stop(self) -> None:
        """End what runs and start nothing more."""
        with self.lock:
            self.stopped = True
            for runner in self.runners:
                runner.end()


def run(jobs: Sequence[Job], settings: Settings, environment: Mapping[str, str], *, python: str = sys.executable) -> None:
    """Run every job, the largest first, and note in each how it ended. A job that fails stops no other.

    Raises:
        KeyboardInterrupt: interrupted or told to end; the jobs that ran have been ended.
    """
    pool = _Pool(settings, environment, python, deque(sorted(jobs, key=lambda job: -job.rows)))
    threads = [threading.Thread(target=pool.work, args=(device,), daemon=True) for device in devices(settings, environment)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(timeout=0.5)  # a join without an end would keep signals waiting
    except KeyboardInterrupt:
        pool.stop()
        for thread in threads:
            thread.join()
        raise


def table(jobs: Sequence[Job], summaries: Mapping[str, JsonRow]) -> str:
    """The scores of the presets that have any, then how each job ended."""
    found = [summaries[job.preset] for job in jobs if job.preset in summaries]
    rows = [("preset", "outcome", "device", "seconds", "log")]
    rows += [(job.preset, job.outcome(), job.device or "-", f"{job.seconds:.0f}", str(job.log)) for job in jobs]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if not found:
        return "\n".join(lines)
    return "\n".join([markdown(found), "", *lines])


def read_summaries(jobs: Sequence[Job], since: float) -> dict[str, JsonObject]:
    """Each finished job's summary; one that is older than ``since`` (seconds of the clock) is an earlier run's and left out."""
    found = {}
    for job in jobs:
        if job.code is not None and job.summary.is_file() and job.summary.stat().st_mtime >= since:
            found[job.preset] = read_summary(job.summary)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m arkfast.evaluate.presets [--flag value ...]``: flags go to every job.

    Returns:
        0 when every job ended with 0; 1 when one did not, after all others have ended; 2 when nothing was started; 130 when interrupted.
    """
    streams.prepare()
    signal.signal(signal.SIGTERM, _interrupt)
    jobs: list[Job] = []
    try:
        settings = Settings.from_environment(os.environ, sys.argv[1:] if argv is None else argv)
        jobs, started = check(settings), time.time()
        check_gpus(settings, os.environ)
        settings = fetched(settings)
        run(jobs, settings, os.environ)
    except InputError as error:
        print(f"evaluate_presets: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("evaluate_presets: interrupted; the jobs were ended", file=sys.stderr)
        return 130
    try:
        _report(jobs, settings, started - 1)  # file systems may keep whole seconds
    except (InputError, OSError) as error:
        print(f"evaluate_presets: error: {error}", file=sys.stderr)
        return 1
    failed = [job for job in jobs if job.code != 0]
    for job in failed:
        print(f"\nevaluate_presets: {job.preset} {job.outcome()}; the end of {job.log}:\n{_tail(job.log)}", file=sys.stderr)
    return 1 if failed else 0


def _report(jobs: Sequence[Job], settings: Settings, since: float) -> None:
    """Print the table, write it, and write the page over all presets that have scores."""
    summaries = read_summaries(jobs, since)
    text = table(jobs, summaries)
    print(f"\n{text}")
    base = settings.output_dir / f"presets_{settings.suffix}"
    write_text(base.with_name(f"{base.name}.md"), text + "\n")
    scored = [job for job in jobs if job.preset in summaries and job.output.is_file()]
    if scored:
        write_page(base.with_name(f"{base.name}.html"), [summaries[job.preset] for job in scored], [job.output for job in scored])


def _tail(log: Path) -> str:
    if not log.is_file():
        return "  (no log)"
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    return "\n".join(f"  {line}" for line in lines[-_TAIL:])


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
