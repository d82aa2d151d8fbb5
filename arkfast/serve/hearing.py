"""Recordings become features in processes of their own, so that a file that crashes its decoder costs one request and nothing else."""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import wait
from multiprocessing.process import parent_process
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from arkfast import audio
from arkfast.data.collate import features_of, read_clip
from arkfast.infer.long import Splitter, Vad
from arkfast.infer.long.split import Known
from arkfast.records import InputError, Utterance
from arkfast.serve.errors import FULL, ApiError, no_room

if TYPE_CHECKING:
    from arkfast.audio import LogMel

LONGEST = 1e9  # seconds, which the system's timers hold
RECORDING = "the recording"
"""What messages call an upload."""


class Clip(NamedTuple):
    """A stretch of a recording that is decoded at once."""

    begin: float
    """Seconds from the recording's start."""
    end: float
    features: Path | None
    """File of its float32 [n_mels, T] log-mel features; None where they are not at hand."""


class Heard(NamedTuple):
    """A recording as clips."""

    clips: tuple[Clip, ...]
    """Ascending and without overlap; none where nothing is heard in a long recording."""
    seconds: float
    """Audio in them."""
    warnings: tuple[str, ...]
    """What is doubtful about the recording."""

    def without_features(self) -> Heard:
        """What stays true when the files of features are gone."""
        return self._replace(clips=tuple(clip._replace(features=None) for clip in self.clips))


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How recordings are cut, and what is too long."""

    n_mels: int
    least_samples: int
    """A shorter clip counts as padded with zeros to so many."""
    longest_clip: float
    """Seconds."""
    max_duration: float
    """Seconds of the part that is asked for."""
    vad: Vad
    seconds: float
    """Within which a recording must have been heard. A process that takes longer ends: a decoder that does not come to its end would keep
    it for ever, long after the request was answered."""


class TooLong(InputError):
    """A recording over the service's limit."""


def hear(path: str, folder: str, begin: float | None, end: float | None, limits: Limits) -> Heard:
    """A recording, or a part of it, as files of features in ``folder``.

    Raises:
        TooLong: the part is longer than the limit.
        InputError: the recording cannot be read whole and sound; the message calls it ``RECORDING``.
        OSError: the features cannot be written.
    """
    # SIGALRM ends the process even where a decoder holds the interpreter.
    signal.setitimer(signal.ITIMER_REAL, min(limits.seconds, LONGEST))
    try:
        return _heard(Utterance(id=RECORDING, audio=path, begin=begin, end=end, where=RECORDING), Path(folder), limits)
    except InputError as error:
        text = str(error).replace(f"{RECORDING}: {path}", RECORDING).replace(path, RECORDING)
        raise type(error)(text) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


def _heard(utterance: Utterance, folder: Path, limits: Limits) -> Heard:
    splitter, log_mel = _splitter(limits.vad, limits.longest_clip), _log_mel(limits.n_mels, limits.least_samples)
    assert isinstance(utterance.audio, str)
    length = audio.extent(utterance.audio, name=RECORDING).seconds
    _check(min(length, utterance.end or length) - (utterance.begin or 0.0), limits)
    clips: list[Clip] = []
    if not splitter.is_long(utterance):
        loaded = read_clip(utterance, max_seconds=limits.longest_clip)
        first, seconds = utterance.begin or 0.0, len(loaded.samples) / audio.SAMPLING_RATE
        clips.append(Clip(first, first + seconds, _kept(features_of(loaded.samples, log_mel, RECORDING), folder, 0)))
        return Heard(tuple(clips), seconds, loaded.warnings)
    known: list[Known] = []
    for number, piece in enumerate(splitter.pieces(utterance, tell=known)):
        _check(piece.end - (utterance.begin or 0.0), limits)
        samples = read_clip(piece.utterance, max_seconds=limits.longest_clip + 0.1).samples
        clips.append(Clip(piece.begin, piece.end, _kept(features_of(samples, log_mel, RECORDING), folder, number)))
    return Heard(tuple(clips), sum(clip.end - clip.begin for clip in clips), known[0].warnings)


def _check(seconds: float, limits: Limits) -> None:
    if seconds > limits.max_duration + 1e-6:
        raise TooLong(f"{RECORDING}: {seconds:.1f} s of audio, over the limit of {limits.max_duration:g} s")


def _kept(features: np.ndarray, folder: Path, number: int) -> Path:
    path = folder / f"{number}.npy"
    written = io.BytesIO()  # np.save into a file on a full disk leaves half of one without an error, or raises one without its number
    np.save(written, features)
    path.write_bytes(written.getbuffer())
    return path


@cache
def _splitter(vad: Vad, longest: float) -> Splitter:
    return Splitter(vad, longest)


@cache
def _log_mel(n_mels: int, least_samples: int) -> LogMel:
    return audio.LogMel(n_mels, least_samples=least_samples)


def _begun(limits: Limits) -> int:
    """What every recording needs; the process's number."""
    _splitter(limits.vad, limits.longest_clip)
    _log_mel(limits.n_mels, limits.least_samples)
    time.sleep(0.05)  # so that the others get a call each
    return os.getpid()


class Hearing:
    """A few processes that hear recordings. One that dies is replaced.

    What was being heard when a process died is heard once more, alone, so that only the recording that does it is refused.

    Args:
        workers: processes.
        limits: for all recordings.
        seconds: within which a recording must have been heard.
    """

    def __init__(self, workers: int, limits: Limits, seconds: float) -> None:
        self._workers, self._limits, self._seconds = workers, limits, seconds
        self._pool = _pool(workers)
        self._alone = asyncio.Lock()
        self.crashes = 0
        """How often a process died."""

    async def start(self) -> None:
        """Start every process, so that no client waits for one.

        Raises:
            InputError: ``vad`` needs a package that is not installed, or a process cannot be started.
        """
        loop, begun = asyncio.get_running_loop(), set[int]()
        try:
            while len(begun) < self._workers:
                begun.update(await asyncio.gather(*(loop.run_in_executor(self._pool, _begun, self._limits) for _ in range(self._workers))))
        except BrokenProcessPool:
            raise InputError(
                f"--num_workers {self._workers}: a process that reads recordings ended while it started; give fewer if memory is short"
            ) from None

    async def __call__(self, path: Path, folder: Path, *, begin: float | None, end: float | None) -> Heard:
        """``hear``, in another process.

        Raises:
            ApiError: 400 for a recording that cannot be heard, 413 for one that is too long, 503 where it takes too much time or the disk
                is full.
        """
        work = (str(path), str(folder), begin, end, self._limits)
        try:
            folder.mkdir(exist_ok=True)
            pool = self._pool
            try:
                return await self._within(pool, work)
            except BrokenProcessPool:
                self.crashes += 1
                if self._pool is pool:
                    self._pool = _pool(self._workers)
            async with self._alone:
                pool = _pool(1)
                try:
                    return await self._within(pool, work)
                finally:
                    _end(pool)
        except BrokenProcessPool:
            self.crashes += 1
            raise _unreadable(f"{RECORDING}: its decoder failed") from None
        except TooLong as error:
            raise ApiError(413, _sentence(error), param="file", code="audio_too_long") from None
        except InputError as error:
            raise _unreadable(str(error)) from None
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise no_room() from None

    async def _within(self, pool: ProcessPoolExecutor, work: tuple[str, str, float | None, float | None, Limits]) -> Heard:
        try:
            return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(pool, hear, *work), self._seconds)
        except asyncio.TimeoutError:
            raise ApiError(503, "The recording took too long to decode.", code="timeout", retry_after=10) from None

    def close(self) -> None:
        """End the processes."""
        _end(self._pool)


def _unreadable(text: str) -> ApiError:
    return ApiError(400, _sentence(text), param="file", code="invalid_audio")


def _sentence(text: object) -> str:
    said = " ".join(str(text).split())
    return said[:1].upper() + said[1:300].rstrip(".") + "."


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent)


def _end(pool: ProcessPoolExecutor) -> None:
    processes = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()
    for process in processes:
        process.join(5)


def end_with_parent() -> None:
    """Start a thread that ends this process when its parent has died, whatever the main thread does; signals of the terminal are the
    parent's to act on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None, "a child process has a parent"
    threading.Thread(target=_wait_and_end, args=(parent.sentinel,), daemon=True).start()


def _wait_and_end(sentinel: int) -> None:
    wait([sentinel])
    os._exit(0)
