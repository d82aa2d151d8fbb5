"""The processes that evaluate presets on a device: one that takes job after job, or one for each job of somebody's own script."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping

from arkfast.evaluate.preset_jobs import Job, Settings
from arkfast.files import move

_WORKER = ("-m", "arkfast.evaluate.preset_worker")


class Runner:
    """What evaluates jobs on one device, one at a time.

    Without ``EVAL_SCRIPT`` one process takes all of the device's jobs, so that the model is loaded once; it is started anew after a job
    that failed. With it, each job is a process.

    Args:
        settings: of all jobs.
        environment: the processes' variables, but for the GPU that they see.
        python: the interpreter.
        device: a GPU's id, or ``cpu``.
    """

    def __init__(self, settings: Settings, environment: Mapping[str, str], python: str, device: str) -> None:
        self._settings, self._python, self._device = settings, python, device
        self._environment = {**environment, "CUDA_VISIBLE_DEVICES": "" if device == "cpu" else device}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, job: Job) -> int:
        """Begin a job; the id of the process that works on it.

        Raises:
            OSError, InputError: there is no such interpreter, or the log cannot be written.
        """
        if job.log.exists():
            move(job.log, job.log.with_name(job.log.name + ".old"))
        with job.log.open("wb") as log:
            if self._settings.eval_script:
                command = self._settings.command(job, self._device, self._python)
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=self._environment
                )
                return self._process.pid
            if self._process is None:
                self._process = subprocess.Popen(
                    [self._python, *_WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=self._environment
                )
        task = {"flags": self._settings.flags(job, self._device), "log": str(job.log.absolute())}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(task).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has ended; ``wait`` finds out how
            pass
        return self._process.pid

    def wait(self) -> int:
        """The exit code of the job that was begun: below 0 where a signal, or a fault that is nobody's input, ended it."""
        assert self._process is not None, "a job has been begun"
        if self._settings.eval_script:
            return self._process.wait()
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else None
        if answer is not None and not answer["last"]:
            return int(answer["code"])
        code = self.close()
        return int(answer["code"]) if answer is not None else code or -1  # it ended in the middle of the job, whatever it says

    def end(self) -> None:
        """Tell the process to end at once."""
        process = self._process
        if process is not None:
            process.terminate()

    def close(self) -> int:
        """Let the process end and wait for it; its exit code, 0 where there is none."""
        process, self._process = self._process, None
        if process is None:
            return 0
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:  # a job that the ended process has not read
                    continue
        return process.wait()
