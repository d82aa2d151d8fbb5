"""Worker processes and the shared memory between them and the consumer: who works on what, and what happens when one dies.

The consumer's own thread does all the dispatching, so there is no thread, no lock, and no queue that a killed process could leave locked.
Every clip in flight owns one slot of an anonymous shared memory (``memfd``: it has no name that could leak, and the 64 MB that containers
set as the size of ``/dev/shm`` do not bind it); pipes carry slot numbers. Results come back in any order; ``pipeline`` puts them in theirs.
"""

from __future__ import annotations

import math
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field, replace
from mmap import PAGESIZE, mmap
from types import TracebackType

import numpy as np

from arkfast.audio import SAMPLING_RATE
from arkfast.audio.load import NOTHING_CHOSEN, Used
from arkfast.data.worker import BROKEN, OUT_OF_MEMORY, READY, REPLY, REQUEST, Features, dump, dump_outcome, load
from arkfast.records import InputError, Utterance

TRIES = 2  # a clip that ends its worker twice is given up
START_SECONDS = 120.0  # to import NumPy on a busy machine or a slow disk
MAX_FAILED_STARTS = 3

# A clip of s seconds takes 8·16000·s bytes as float64 samples, and 4·100·128·s bytes as features of 128 mels; ``prepare`` may double that.
_SLOT_BYTES_PER_SECOND = 8 * SAMPLING_RATE
SLOT_BYTES = (1 << 16, 1 << 26)  # least and most; what does not fit travels through the pipe. Pages cost memory only once written

# Several workers read clips at the same time, so threads inside one would only be in each other's way.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# glibc otherwise gives a clip's arrays back to the kernel after every clip, and their pages cost faults anew: a sixth of a worker's time.
_WORKER_ENVIRONMENT = {"MALLOC_TRIM_THRESHOLD_": str(1 << 28), "MALLOC_MMAP_THRESHOLD_": str(1 << 26)}

# Ctrl-C, a lost terminal and the notice before a kill are the consumer's to handle: torchrun sends them to the process group, Slurm to
# every process, and workers that went at once would leave the consumer without the batches of its last steps.
_CONSUMERS_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))

# What a worker runs. First it sets its signals, which its parent has blocked until then. It takes over the import path, as a spawned
# process of multiprocessing would, but never imports the main module.
_BOOTSTRAP = f"""
import sys
sys.path[:] = sys.argv[1].splitlines()
import signal
for number in {tuple(map(int, _CONSUMERS_SIGNALS))}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {tuple(map(int, _CONSUMERS_SIGNALS))})
from arkfast.data.worker import main
main(*map(int, sys.argv[2:]))
"""


class WorkersBroken(RuntimeError):
    """Feature workers cannot be started: no clip can be read."""


@dataclass(eq=False)
class Job:
    """One clip in flight."""

    utterance: Utterance
    slot: int
    deaths: list[str] = field(default_factory=list)  # how workers ended that had this clip
    reply: bytes | None = None  # once done: what came through the pipe, b"" when the value stands in the slot


class _Process:
    """A worker as its parent sees it. It serves its jobs first in, first out."""

    def __init__(self, process: subprocess.Popen[bytes], requests: int, replies: int) -> None:
        self.process, self.requests, self.replies = process, requests, replies
        self.jobs: deque[Job] = deque()
        self.ready = False
        self.since = time.monotonic()  # the latest moment at which its current job can have begun

    def end(self) -> None:
        """Kill and forget it. Nothing is lost: it holds no files, no locks and no named memory."""
        os.close(self.requests)
        os.close(self.replies)
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):  # a process inside a dead network file system dies when that comes back
            self.process.wait(timeout=1.0)


class Pool:
    """The processes, the shared memory and what is in work where."""

    def __init__(self, features: Features, workers: int, slots: int, timeout: float) -> None:
        self._features, self._limit, self._timeout = features, workers, timeout
        self._processes: list[_Process] = []
        self._failed_starts = 0
        least, most = SLOT_BYTES
        self._slot_bytes = least + _pages(min(math.ceil(_SLOT_BYTES_PER_SECOND * min(features.max_seconds, 3600.0)), most))
        self._free = list(range(slots))[::-1]  # used as a stack: the slots written last are the ones in the caches
        settings = pickle.dumps(features, protocol=5)
        self._settings_bytes, self._slots_at = len(settings), _pages(len(settings))
        self._memory = _anonymous_memory(self._slots_at + slots * self._slot_bytes)
        self._map = mmap(self._memory, 0)
        self._map[: len(settings)] = settings
        self._poll = select.poll()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self._processes:
            process.end()
        self._processes.clear()
        os.close(self._memory)
        with suppress(BufferError):  # an exception on its way up may still refer to a slot; the mapping then goes with it
            self._map.close()

    def submit(self, utterance: Utterance) -> Job:
        """Hand an utterance to the worker that has least to do."""
        job = Job(utterance, self._free.pop())
        # Only what the extractors read travels.
        if dump(replace(utterance, text=None, extra={}), self._room(job.slot)):
            # These samples do not even fit into a slot. Most likely they are too long, so the answer is quick; sending them could block.
            job.reply = dump_outcome(self._features, utterance, self._room(job.slot))
        else:
            self._assign(job)
        return job

    def take(self, job: Job) -> tuple[np.ndarray | InputError, object, tuple[str, ...], Used]:
        """Wait for a job, return its result, free its slot.

        Returns:
            As a ``FeatureItem`` has them: features or why there are none, the prepared value, warnings, what was used of several channels.

        Raises:
            WorkersBroken: workers cannot be started.
            Exception: what an extractor raised, unless it was an ``InputError``.
        """
        while job.reply is None:
            self._wait()
        try:
            kind, *rest = load(memoryview(job.reply) if job.reply else self._room(job.slot))
        finally:
            self._free.append(job.slot)
        if kind == "ok":
            return rest[0], rest[1], rest[2], rest[3]
        if kind == "bad":
            return InputError(rest[0]), None, (), NOTHING_CHOSEN
        error, trace = rest
        cause = RuntimeError(f"in a feature worker, at {job.utterance.name}:\n{trace}")
        raise (error if isinstance(error, Exception) else RuntimeError(error)) from cause

    def _room(self, slot: int) -> memoryview:
        start = self._slots_at + slot * self._slot_bytes
        return memoryview(self._map)[start : start + self._slot_bytes]

    def _assign(self, job: Job) -> None:
        while True:
            process = min(self._processes, key=lambda p: len(p.jobs), default=None)
            if process is None or (process.jobs and len(self._processes) < self._limit):
                process = self._start()
            try:
                os.write(process.requests, REQUEST.pack(job.slot))
            except BrokenPipeError:  # it died before; what it said until then tells at which job
                while self._receive(process):
                    pass
                continue
            if not process.jobs:
                process.since = time.monotonic()
            process.jobs.append(job)
            return

    def _start(self) -> _Process:
        """A new worker, known to the pool."""
        # A process has the mask that it was started under until it can say what it ignores. Signals to this thread wait meanwhile, and an
        # exception of theirs comes when the pool knows what it has to end.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _CONSUMERS_SIGNALS)
        try:
            process = self._launch()
            self._processes.append(process)
            self._poll.register(process.replies, select.POLLIN)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return process

    def _launch(self) -> _Process:
        ours_requests, ours_replies = [*os.pipe()], [*os.pipe()]
        requests, replies = ours_requests[0], ours_replies[1]
        numbers = (requests, replies, self._memory, self._settings_bytes, self._slots_at, self._slot_bytes, os.getpid())
        path = "\n".join(str(entry) or os.getcwd() for entry in sys.path)
        try:
            started = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, path, *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a library prints must not get between the consumer's own lines
                pass_fds=(requests, replies, self._memory),
                env={**_WORKER_ENVIRONMENT, **os.environ, **_ONE_THREAD},
                start_new_session=True,  # out of the process group, which others send their signals to
            )
        except BaseException:
            os.close(ours_requests[1])
            os.close(ours_replies[0])
            raise
        finally:
            os.close(requests)
            os.close(replies)
        return _Process(started, ours_requests[1], ours_replies[0])

    def _wait(self) -> None:
        """Receive what workers have sent, or wait for at most a second; notice those that died or hang."""
        now = time.monotonic()
        left = min((self._deadline(p) - now for p in self._processes if p.jobs), default=1.0)
        talking = {descriptor for descriptor, _ in self._poll.poll(1000 * min(max(left, 0.0), 1.0))}
        for process in list(self._processes):
            if process not in self._processes:  # buried meanwhile, when a job could not be handed to it
                continue
            dead = process.process.poll() is not None
            late = bool(process.jobs) and time.monotonic() > self._deadline(process)
            if process.replies in talking:
                self._receive(process)
            elif (dead or late) and process.replies not in dict(self._poll.poll(0)):  # its last words may have come just now
                limit = f"took over {self._timeout:g} s" if process.ready else f"did not start in {START_SECONDS:g} s"
                self._bury(process, "died" if dead else limit)

    def _deadline(self, process: _Process) -> float:
        return process.since + (self._timeout if process.ready else START_SECONDS)

    def _receive(self, process: _Process) -> bool:
        """Take one reply in; False when there is none because the worker has died, which is seen to."""
        header = _read(process.replies, REPLY.size)
        kind, slot, size = REPLY.unpack(header) if header else (None, 0, 0)
        inline = _read(process.replies, size) if size else b""
        if kind is None or inline is None:
            self._bury(process, "died")
            return False
        if kind == BROKEN:
            reason = inline.decode(errors="replace")
            raise WorkersBroken(f"a feature worker cannot load its extractors; define them in a module that it can import:\n{reason}")
        process.since = time.monotonic()
        if kind == READY:
            process.ready, self._failed_starts = True, 0
        else:
            job = process.jobs.popleft()
            assert job.slot == slot, "a worker serves its jobs in their order"
            job.reply = inline
        return True

    def _bury(self, process: _Process, what: str) -> None:
        """Take a dead or hanging worker away: the clip it was at is tried again or given up, those behind it go to others."""
        status = process.process.poll()
        if what == "died":
            with suppress(subprocess.TimeoutExpired):  # its pipe closes an instant before it is gone
                status = process.process.wait(timeout=1.0)
        self._poll.unregister(process.replies)
        self._processes.remove(process)
        process.end()
        reason = f"{what} ({_exit_reason(status)})" if what == "died" else what
        jobs = process.jobs
        if not process.ready:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise WorkersBroken(f"feature workers cannot start: {self._failed_starts} in a row {reason}; see standard error")
        elif jobs:
            jobs[0].deaths.append(reason)
        for job in jobs:
            if len(job.deaths) >= TRIES:
                story = " and the next ".join(job.deaths)
                message = f"{job.utterance.name}: given up: the worker at it {story}; remove the clip or encode it anew"
                job.reply = b""
                dump(("bad", message), self._room(job.slot))
            else:
                dump(replace(job.utterance, text=None, extra={}), self._room(job.slot))  # the worker may have written over it
                self._assign(job)


def _exit_reason(status: int | None) -> str:
    if status is None:
        return "no exit status"
    if status == OUT_OF_MEMORY:
        return "out of memory"
    if status < 0:
        name = signal.Signals(-status).name if -status in signal.valid_signals() else f"signal {-status}"
        return f"{name}, as the kernel sends when memory runs out" if name == "SIGKILL" else name
    return f"exit status {status}"


def _read(descriptor: int, size: int) -> bytes | None:
    """Exactly ``size`` bytes, or None at the pipe's end."""
    received = bytearray()
    while len(received) < size:
        if not (piece := os.read(descriptor, min(size - len(received), 1 << 20))):
            return None
        received += piece
    return bytes(received)


def _pages(size: int) -> int:
    return -(-size // PAGESIZE) * PAGESIZE


def _anonymous_memory(size: int) -> int:
    """A descriptor of shared memory that no name leads to, so it is gone when the last process that has it is."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("arkfast-features")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
