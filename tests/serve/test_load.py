"""A flood of requests: each is answered or told why not, what is answered is what it would be alone, and no memory stays behind.

``ARKFAST_FLOOD_REQUESTS`` and ``ARKFAST_FLOODS`` give other numbers than 150 requests and three floods, as scripts/test_full.sh does.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from arkfast.testing import synthetic_speech, write_wav

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from harness.flood import Answer, Clip, Server, alone, flood, resident

if TYPE_CHECKING:
    from tests.serve.conftest import Running

pytestmark = pytest.mark.slow
REQUESTS, FLOODS = int(os.environ.get("ARKFAST_FLOOD_REQUESTS", "150")), int(os.environ.get("ARKFAST_FLOODS", "3"))
CONCURRENCY = 64
SECONDS = (0.5, 0.8, 1.0, 1.3, 1.7, 2.2, 3.0, 4.0)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Recordings of several lengths, and something that is none."""
    folder = tmp_path_factory.mktemp("spoken")
    paths = [write_wav(folder / f"{number}.wav", synthetic_speech(seconds, seed=number)) for number, seconds in enumerate(SECONDS)]
    clips = [Clip(path.name, path.read_bytes(), seconds) for path, seconds in zip(paths, SECONDS, strict=True)]
    return [*clips, Clip("text.wav", b"This is no recording.", 0.0)]


def server(service: Running) -> Server:
    return Server(name="arkfast", address=service.address, model="ark-asr", pid=service.process.pid)


def check(answers: Sequence[Answer], expected: Sequence[Answer]) -> Counter[int]:
    """Every answer is the one that the recording gets alone, or a refusal as documented; how often each status came."""
    for answer in answers:
        if answer.status in (429, 503):
            assert answer.code in ("rate_limit_exceeded", "overloaded", "engine_unavailable", "timeout"), answer
            assert answer.waits, answer
        else:
            assert answer.said == expected[answer.clip].said
    return Counter(answer.status for answer in answers)


def test_floods_lose_no_request_change_no_text_and_leave_no_memory(start: Callable[..., Running], spoken: list[Clip], capsys):
    # The cache of what was heard holds a few of the recordings, so that they are heard anew again and again and found there, too.
    limits = ("--max_requests", str(CONCURRENCY - 16), "--max_requests_per_key", str(CONCURRENCY), "--encoder_cache_mb", "0.05")
    service = start(*limits)
    expected = alone(server(service), spoken)
    assert [answer.status for answer in expected] == [200] * len(SECONDS) + [400]
    assert len({answer.text for answer in expected[:-1]}) == len(SECONDS), "every recording has another text"
    memory, counts = [], Counter[int]()
    for _ in range(FLOODS):
        found = flood(server(service), spoken, concurrency=CONCURRENCY, requests=REQUESTS)
        assert len(found.answers) == REQUESTS
        counts += check(found.answers, expected)
        assert service.is_idle()
        memory.append(resident(service.process.pid))
    with capsys.disabled():
        sizes = ", ".join(f"{size / 1e6:.0f}" for size in memory)
        print(f"\n{FLOODS} floods of {REQUESTS}: statuses {dict(counts)}, resident after each {sizes} MB")
    assert counts[200] + counts[400] > REQUESTS * FLOODS / 2, "most were answered"
    assert counts[429] > 0, "more came at once than the house takes"
    assert memory[-1] <= 1.1 * memory[0]
    assert service.gauge("arkfast_engine_deaths") == service.gauge("arkfast_decoder_crashes") == 0
    assert service.stop() == 0


def sending(service: Running, data: bytes) -> tuple[socket.socket, bytes]:
    """A client that has sent half of a request with a recording, and the other half."""
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + data + b"\r\n--b--\r\n"
    host, port = service.address.removeprefix("http://").split(":")
    head = f"POST /asr HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(form)}\r\n\r\n"
    line = socket.create_connection((host, int(port)), timeout=30)
    line.sendall(head.encode() + form[: len(form) // 2])
    return line, form[len(form) // 2 :]


def test_twenty_clients_that_disconnect_half_way_leave_no_busy_slot(start: Callable[..., Running], clips: Path):
    service = start("--slots", "4")
    before = service.post(file=clips / "2.wav").json()["text"]
    data = (clips / "70.wav").read_bytes()
    lines = [sending(service, data) for _ in range(20)]
    until = time.monotonic() + 60
    while service.gauge("arkfast_requests_inside") < 20:
        assert time.monotonic() < until, "all twenty are inside"
    for line, rest in lines[10:]:
        line.sendall(rest)
    while not service.gauge("arkfast_clips_decoding"):
        assert time.monotonic() < until, "the engine decodes for some of them"
    for line, _ in lines:
        line.close()
    assert service.is_idle()
    assert service.post(file=clips / "2.wav").json()["text"] == before
    assert service.stop() == 0
