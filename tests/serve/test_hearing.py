"""The processes that read recordings: all there before a client comes, and none is lost to a recording, a flag or a disk."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from arkfast.records import InputError
from arkfast.serve.errors import ApiError
from arkfast.serve.hearing import Hearing, Limits
from arkfast.testing import synthetic_speech, write_wav

LIMITS = Limits(n_mels=128, least_samples=400, longest_clip=30.0, max_duration=100.0, vad="energy", seconds=60.0)
T = TypeVar("T")


def heard(work: Callable[[Hearing], Awaitable[T]], *, workers: int = 1, limits: Limits = LIMITS) -> T:
    """What some processes make of some work."""

    async def run() -> T:
        hearing = Hearing(workers, limits, 60.0)
        try:
            return await work(hearing)
        finally:
            hearing.close()

    return asyncio.run(run())


def test_every_process_is_there_before_a_recording_comes() -> None:
    async def started(hearing: Hearing) -> int:
        await hearing.start()
        return len(hearing._pool._processes)

    assert heard(started, workers=2) == 2


def test_a_package_that_is_missing_is_told_at_the_start_and_not_to_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "silero_vad.py").write_text("raise ImportError('not here')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="--vad silero needs the package silero-vad"):
        heard(lambda hearing: hearing.start(), limits=replace(LIMITS, vad="silero"))


def test_a_full_disk_is_told_and_is_no_failure(tmp_path: Path) -> None:
    recording = write_wav(tmp_path / "a.wav", synthetic_speech(1.0))
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "0.npy").symlink_to("/dev/full")
    with pytest.raises(ApiError) as found:
        heard(lambda hearing: hearing(recording, tmp_path / "clips", begin=None, end=None))
    assert (found.value.status, found.value.code, found.value.retry_after) == (503, "no_room", 10)


ENDLESS = """
import time
from arkfast.serve import hearing
hearing._heard = lambda *arguments: time.sleep(600)
hearing.hear("a.wav", ".", None, None, hearing.Limits(
    n_mels=128, least_samples=400, longest_clip=30.0, max_duration=100.0, vad="energy", seconds=0.2))
"""


def test_a_recording_that_does_not_come_to_its_end_does_not_keep_its_process() -> None:
    assert subprocess.run([sys.executable, "-c", ENDLESS], timeout=120).returncode == -signal.SIGALRM
