"""Engines that die, clients that vanish, services that are stopped: nothing is left behind, and nobody waits for ever."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from tests.serve.conftest import Running

pytestmark = pytest.mark.slow


def children(service: Running) -> list[int]:
    listed = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
    return [int(pid) for pid in listed]


def engine(service: Running) -> int:
    """The process with the model: the largest child."""
    return max(children(service), key=lambda pid: int(Path(f"/proc/{pid}/statm").read_text().split()[1]))


def wait_for(what: Callable[[], bool], seconds: float = 60.0) -> bool:
    until = time.monotonic() + seconds
    while not what():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def test_an_engine_that_is_killed_is_replaced_and_its_requests_are_told(start: Callable[..., Running], clips: Path):
    service = start("--max_requests_per_key", "64")
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(service.post, file=clips / "70.wav") for _ in range(8)]
        assert wait_for(lambda: service.gauge("arkfast_clips_decoding") > 0)
        os.kill(engine(service), signal.SIGKILL)
        answers = [each.result() for each in asked]
    lost = [answer for answer in answers if answer.status_code != 200]
    assert lost
    for answer in lost:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
    assert service.client.get("/ready").status_code == 503
    assert service.client.get("/health").status_code == 200
    assert wait_for(lambda: service.client.get("/ready").status_code == 200), "it comes back by itself"
    assert service.post(file=clips / "1.wav").status_code == 200
    assert service.gauge("arkfast_engine_deaths") == 1
    before = children(service)
    service.process.kill()
    service.process.wait()
    assert wait_for(lambda: not any(Path(f"/proc/{pid}").exists() and "Z" not in state(pid) for pid in before), 15)


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_clients_that_vanish_leave_no_busy_slot(service: Running, clips: Path):
    data = (clips / "70.wav").read_bytes()
    for number in range(6):
        with suppress(httpx.TimeoutException):
            httpx.post(f"{service.address}/asr", files={"file": ("a.wav", data)}, timeout=0.05 * (number + 1))
    assert service.is_idle()


def test_a_service_that_is_stopped_finishes_what_runs(start: Callable[..., Running], clips: Path, tmp_path: Path):
    service = start("--spool", str(tmp_path / "spool"))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(service.post, file=clips / "70.wav")
        assert wait_for(lambda: service.gauge("arkfast_requests_inside") > 0 or asked.done())
        assert service.stop() == 0
        assert asked.result().status_code == 200
    assert list((tmp_path / "spool").iterdir()) == [], "nothing of a recording is left"


def test_a_model_that_cannot_be_loaded_ends_the_command(tmp_path: Path, capfd):
    from arkfast.cli import main

    assert main(["serve", str(tmp_path), "--port", "0"]) == 2
    assert "arkfast serve: error: " in capfd.readouterr().err


def test_an_address_that_is_taken_is_named(service: Running, model: Path, capfd):
    from arkfast.cli import main

    port = service.address.rpartition(":")[2]
    assert main(["serve", str(model), "--port", port]) == 2
    assert f"--port {port}: cannot be listened on" in capfd.readouterr().err
