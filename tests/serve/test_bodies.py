"""Bodies that are large, slow or without end: they are cut off in time, and nobody's memory holds them."""

from __future__ import annotations

import asyncio
import errno
import itertools
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvicorn
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from arkfast.serve import connections, form
from arkfast.serve.errors import ApiError

if TYPE_CHECKING:
    from tests.serve.conftest import Running

BEGIN = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.WAV"\r\n\r\n'
END = b"\r\n--b--\r\n"
CHUNK = 1 << 16


def received(parts: Iterator[bytes], folder: Path, *, most: int = 1 << 30) -> form.Form:
    """What ``form.received`` makes of a body that comes in parts."""
    folder.mkdir(exist_ok=True)
    ahead = next(parts)

    async def receive() -> Message:
        nonlocal ahead
        part, ahead = ahead, next(parts, b"")
        return {"type": "http.request", "body": part, "more_body": bool(ahead)}

    scope = {"type": "http", "app": None, "method": "POST", "headers": [(b"content-type", b"multipart/form-data; boundary=b")]}
    return asyncio.run(form.received(Request(scope, receive), folder, most=most, seconds=60))


def resident(pid: int | str = "self") -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_large_upload_lies_on_the_disk_and_not_in_memory(tmp_path: Path):
    received(iter([BEGIN, bytes(CHUNK), END]), tmp_path / "first")
    count, sizes = 200_000_000 // CHUNK, [resident()]

    def parts() -> Iterator[bytes]:
        yield BEGIN
        for number in range(count):
            if number % 100 == 0:
                sizes.append(resident())
            yield bytes(CHUNK)
        yield END

    found = received(parts(), tmp_path / "second")
    assert found.recording.stat().st_size == count * CHUNK
    assert found.recording.name == "recording.wav"
    assert max(sizes) - sizes[0] < 40_000_000
    found.recording.unlink()


def test_a_body_without_end_stops_at_the_limit(tmp_path: Path):
    seen = 0

    def endless() -> Iterator[bytes]:
        nonlocal seen
        yield BEGIN
        while True:
            seen += CHUNK
            yield bytes(CHUNK)

    with pytest.raises(ApiError) as found:
        received(endless(), tmp_path / "form", most=3_000_000)
    assert (found.value.status, found.value.code) == (413, "too_large")
    assert seen < 3_000_000 + 4 * CHUNK


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_and_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    def full(*arguments: object) -> None:
        raise OSError(number, "full")

    monkeypatch.setattr(form.shutil, "copyfileobj", full)
    with pytest.raises(ApiError) as found:
        received(iter([BEGIN, b"x", END]), tmp_path / "form")
    assert (found.value.status, found.value.code, found.value.retry_after) == (503, "no_room", 10)


def test_another_failure_of_the_disk_stays_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*arguments: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(form.shutil, "copyfileobj", broken)
    with pytest.raises(OSError, match="broken"):
        received(iter([BEGIN, b"x", END]), tmp_path / "form")


@pytest.mark.parametrize(
    ("parts", "most", "status", "close"),
    [
        ([BEGIN, b"x", END], 10, 413, True),
        ([BEGIN + bytes(100) + END], 100, 413, False),
        ([b"no form"], 100, 400, False),
        ([b"no form", b"more of it"], 100, 400, True),
    ],
)
def test_the_rest_of_a_refused_body_is_waited_for_where_there_is_one(
    tmp_path: Path, parts: list[bytes], most: int, status: int, close: bool
) -> None:
    """A client whose whole request has come gets its answer at once; there is nothing more to read before it."""
    with pytest.raises(ApiError) as found:
        received(iter(parts), tmp_path / "form", most=most)
    assert (found.value.status, found.value.close) == (status, close)


HEAD = "POST /asr HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"


def opened(service: Running) -> socket.socket:
    host, port = service.address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def flooded(service: Running, head: str, parts: Iterator[bytes]) -> tuple[bytes, int]:
    """Send a request part by part, and read meanwhile: the first line of the answer, and how many bytes of the body were sent."""
    sent = 0
    with opened(service) as line:

        def send() -> None:
            nonlocal sent
            line.sendall(head.encode() + b"\r\n")
            for part in parts:
                line.sendall(part)
                sent += len(part)

        def until_cut_off() -> None:
            try:
                send()
            except OSError:
                return

        sender = threading.Thread(target=until_cut_off, daemon=True)
        sender.start()
        with line.makefile("rb") as answer:
            first = answer.readline()
        sender.join(60)
        assert not sender.is_alive()
    return first, sent


@pytest.mark.slow
@pytest.mark.parametrize("length", ["Content-Length: 1073741824", "Transfer-Encoding: chunked"])
def test_a_gigabyte_that_is_really_sent_is_refused_and_cut_off(service: Running, length: str):
    before = resident(service.process.pid)
    parts = [BEGIN, bytes(CHUNK)]
    if "chunked" in length:
        parts = [f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in parts]
    body = itertools.chain(parts[:1], itertools.repeat(parts[1], (1 << 30) // CHUNK))
    first, sent = flooded(service, HEAD + length + "\r\n", body)
    assert b" 413 " in first
    assert sent < 100_000_000, "the connection ends long before the gigabyte has passed"
    assert resident(service.process.pid) - before < 50_000_000
    assert service.client.get("/health").status_code == 200


@pytest.mark.slow
def test_a_body_that_drips_ends_in_time(service: Running):
    def drops() -> Iterator[bytes]:
        yield BEGIN
        while True:
            time.sleep(0.2)
            yield b"x"

    started = time.monotonic()
    first, sent = flooded(service, HEAD + "Content-Length: 1000000\r\n", drops())
    assert b" 408 " in first
    assert sent < 200
    assert time.monotonic() - started < 25
    assert service.is_idle()


@pytest.mark.slow
def test_connections_that_do_not_say_what_they_want_are_closed(service: Running):
    """More of them than the service takes at once: while they are there others are told so, and afterwards they are not there."""
    lines = [opened(service) for _ in range(300)]
    for line in lines:
        line.sendall(b"POST /asr HTTP/1.1\r\nHost: loc")
    refused = service.client.get("/health")
    assert (refused.status_code, refused.json()["error"]["code"], refused.headers["retry-after"]) == (503, "overloaded", "2")
    until = time.monotonic() + 40
    while service.client.get("/health").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.5)
    for line in lines:
        assert line.recv(1) == b""
        line.close()


def test_headers_have_a_time_and_what_is_answered_has_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.6)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def check() -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(app, http=connections.Connection, lifespan="off", log_config=None, access_log=False)
        server = uvicorn.Server(config)
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        while not server.started:
            await asyncio.sleep(0.01)
        silent, cut, slow = [await asyncio.open_connection(*listening.getsockname()) for _ in range(3)]
        cut[1].write(b"GET / HTTP/1.1\r\nHos")
        slow[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        for reader, _ in (silent, cut):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        answer = await asyncio.wait_for(slow[0].readuntil(b"ok"), 5)
        assert answer.startswith(b"HTTP/1.1 200 ")
        slow[1].write(b"GET / HTTP/1.1\r\nHos")  # the next request on the same connection
        assert await asyncio.wait_for(slow[0].read(), 5) == b""
        server.should_exit = True
        await serving

    asyncio.run(check())
