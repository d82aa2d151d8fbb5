"""A chunk's rows beside the next chunk's product. Streams and events are stand-ins that keep what each piece of work may rely on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from arkfast.kernels.common import beside
from arkfast.kernels.common.beside import BUFFERS, PRIORITY, Beside

GPU = torch.device("cuda", 1)


class Event:
    def __init__(self, done: frozenset[str]) -> None:
        self.done = done


class Stream:
    """Knows what has certainly been done when its next piece of work begins."""

    def __init__(self, name: str) -> None:
        self.name, self.done = name, frozenset[str]()

    def wait_stream(self, other: Stream) -> None:
        self.done |= other.done

    def wait_event(self, event: Event) -> None:
        self.done |= event.done

    def record_event(self) -> Event:
        return Event(self.done)


class Machine:
    """A GPU with a current stream; ``work`` is what a launch is on it."""

    def __init__(self) -> None:
        self.current = [Stream("main")]
        self.before: dict[str, frozenset[str]] = {}
        """Piece of work → what had certainly been done before it began."""
        self.where: dict[str, str] = {}

    def work(self, name: str) -> None:
        stream = self.current[-1]
        self.before[name], self.where[name] = stream.done, stream.name
        stream.done |= {name}

    @contextmanager
    def inside(self, stream: Stream) -> Iterator[None]:
        self.current.append(stream)
        try:
            yield
        finally:
            self.current.pop()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: machine.current[-1])
    monkeypatch.setattr(torch.cuda, "stream", machine.inside)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: Stream(f"{device} priority {priority}"))
    beside._stream_of.cache_clear()
    yield machine
    beside._stream_of.cache_clear()


def run(machine: Machine, chunks: int, *, on: bool = True) -> None:
    machine.work("before")
    with Beside(GPU, on=on) as halves:
        for i in range(chunks):
            halves.claim(i % BUFFERS)
            machine.work(f"product {i}")
            with halves.second(i % BUFFERS):
                machine.work(f"rows {i}")
    machine.work("after")


def test_rows_run_beside_the_next_product_and_never_beside_their_own(machine: Machine) -> None:
    run(machine, 5)
    for i in range(5):
        assert machine.where[f"product {i}"] == "main"
        assert machine.where[f"rows {i}"] == f"{GPU} priority {PRIORITY}"
        assert {"before", f"product {i}"} <= machine.before[f"rows {i}"]
        # A buffer is written again when its rows have been read, and no sooner than it must be.
        earlier = {name for name in machine.before[f"product {i}"] if name.startswith("rows")}
        assert earlier == {f"rows {j}" for j in range(i - BUFFERS + 1)}
    assert {f"rows {i}" for i in range(5)} <= machine.before["after"]


def test_memory_that_was_given_back_is_not_written_before_it_was_read(machine: Machine) -> None:
    """Results live in the second stream's memory; the next call's rows may be handed the same."""
    run(machine, 2)
    machine.work("a use of the results")
    run(machine, 1)
    assert "a use of the results" in machine.before["rows 0"]


def test_after_an_error_the_current_stream_waits_all_the_same(machine: Machine) -> None:
    def fail() -> None:
        with Beside(GPU, on=True) as halves:
            with halves.second(0):
                machine.work("rows 0")
            raise ValueError("of the second chunk")

    with pytest.raises(ValueError, match="of the second chunk"):
        fail()
    machine.work("after")
    assert "rows 0" in machine.before["after"]


def test_a_single_chunk_stays_on_its_stream(machine: Machine) -> None:
    run(machine, 1, on=False)
    assert set(machine.where.values()) == {"main"}


def test_a_cpu_has_no_streams(machine: Machine) -> None:
    with Beside(torch.device("cpu"), on=True) as halves:
        halves.claim(0)
        with halves.second(0):
            machine.work("rows")
    assert machine.where == {"rows": "main"}
