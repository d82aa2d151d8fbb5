"""Clients of a transcription service: so many at once, each sends its next recording when the last one was answered.

It knows OpenAI's routes alone, so that every server that speaks them is asked in the same way.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import httpx

ROUTE = "/v1/audio/transcriptions"
REFUSALS = (429, 503)
"""Statuses by which a server says that it has too much to do; a client waits then before it sends its next recording."""
LONGEST_WAIT = 5.0  # seconds, whatever Retry-After says
PATIENCE = 600.0  # seconds for one answer


@dataclass(frozen=True, kw_only=True)
class Server:
    """A service at an address."""

    name: str
    address: str
    """As http://127.0.0.1:8025."""
    model: str
    """What it calls the model that is asked."""
    key: str = "none"
    """Its API key; what it is does not matter where none is needed."""
    pid: int | None = None
    """The process whose memory, with that of all its descendants, is measured; None where it is not known."""


class Clip(NamedTuple):
    """A recording to send."""

    name: str
    data: bytes
    seconds: float
    """Of audio."""


class Answer(NamedTuple):
    """What came back for a recording."""

    clip: int
    """Its number."""
    status: int
    """0 where the connection broke."""
    seconds: float
    """From the first byte sent to the last one received."""
    text: str | None
    """The transcript, of a status of 200."""
    code: str | None
    """OpenAI's code of the error, of any other."""
    waits: bool
    """Whether it says when to ask again (Retry-After)."""

    @property
    def said(self) -> tuple[int, str | None, str | None]:
        """What is the same whenever the recording is sent."""
        return self.status, self.text, self.code


class Flood(NamedTuple):
    """What a number of clients got."""

    answers: list[Answer]
    seconds: float
    """From the first request to the last answer."""
    memory: list[tuple[float, int]]
    """(seconds from the start, resident bytes), about every second; empty where the process is not known."""


def resident(pid: int) -> int:
    """Resident bytes of a process and of all its descendants; pages that they share count for each."""
    pages, waiting = 0, [pid]
    while waiting:
        each = waiting.pop()
        try:
            pages += int(Path(f"/proc/{each}/statm").read_text().split()[1])
            for task in Path(f"/proc/{each}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except (OSError, IndexError):  # it has just ended
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")


def flood(server: Server, clips: Sequence[Clip], *, concurrency: int, requests: int | None = None, hold: float | None = None) -> Flood:
    """Send recordings in turn, again and again.

    Args:
        server: whom to ask.
        clips: what to send.
        concurrency: clients at once.
        requests: how many recordings are sent; None sends until ``hold`` is over.
        hold: seconds after which nothing more is sent.
    """
    assert (requests is None) != (hold is None), "a flood ends by its number or by its time"
    return asyncio.run(_flood(server, clips, concurrency, requests, hold))


def alone(server: Server, clips: Sequence[Clip]) -> list[Answer]:
    """Each recording once, one after the other."""
    return flood(server, clips, concurrency=1, requests=len(clips)).answers


def model_of(address: str, key: str) -> str:
    """What a server calls the first model that it serves.

    Raises:
        ValueError: it cannot be asked, or says none.
    """
    import httpx

    try:
        return str(httpx.get(f"{address}/v1/models", headers=_headers(key), timeout=10).raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{address}/v1/models does not say what is served there ({type(error).__name__})") from error


async def _flood(server: Server, clips: Sequence[Clip], concurrency: int, requests: int | None, hold: float | None) -> Flood:
    import httpx

    answers: list[Answer] = []
    memory: list[tuple[float, int]] = []
    numbers = itertools.count() if requests is None else iter(range(requests))
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    started = time.monotonic()

    async def watch(pid: int) -> None:
        while True:
            memory.append((time.monotonic() - started, await asyncio.to_thread(resident, pid)))
            await asyncio.sleep(1.0)

    async with httpx.AsyncClient(base_url=server.address, headers=_headers(server.key), limits=limits, timeout=PATIENCE) as client:
        watcher = None if server.pid is None else asyncio.ensure_future(watch(server.pid))
        try:
            ends = None if hold is None else started + hold
            await asyncio.gather(*(_client(client, server.model, clips, numbers, answers, ends) for _ in range(concurrency)))
        finally:
            if watcher is not None:
                watcher.cancel()
                await asyncio.gather(watcher, return_exceptions=True)
    return Flood(answers, time.monotonic() - started, memory)


async def _client(
    client: httpx.AsyncClient, model: str, clips: Sequence[Clip], numbers: Iterator[int], answers: list[Answer], ends: float | None
) -> None:
    for number in numbers:
        if ends is not None and time.monotonic() >= ends:
            return
        clip = number % len(clips)
        answer, wait = await _ask(client, model, clip, clips[clip])
        answers.append(answer)
        if wait:
            await asyncio.sleep(min(wait, LONGEST_WAIT))


async def _ask(client: httpx.AsyncClient, model: str, number: int, clip: Clip) -> tuple[Answer, float]:
    """The answer, and the seconds to wait before the next request."""
    import httpx

    started = time.monotonic()
    try:
        got = await client.post(ROUTE, data={"model": model, "response_format": "json"}, files={"file": (clip.name, clip.data)})
    except httpx.HTTPError as error:
        return Answer(number, 0, time.monotonic() - started, None, type(error).__name__, False), 0.0
    seconds = time.monotonic() - started
    said = got.headers.get("retry-after", "")
    wait = (float(said) if said.isdigit() else 1.0) if got.status_code in REFUSALS else 0.0
    try:
        body = got.json()
        if got.status_code == 200:
            return Answer(number, 200, seconds, str(body["text"]), None, bool(said)), wait
        return Answer(number, got.status_code, seconds, None, str(body["error"]["code"]), bool(said)), wait
    except (ValueError, KeyError, TypeError):  # another server's own form of an error
        return Answer(number, got.status_code, seconds, None, None, bool(said)), wait


def _headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
