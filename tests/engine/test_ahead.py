"""Rollouts on a stream of high priority. The streams are stand-ins that record what is asked of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from engine_batches import ALLOWED, make_batch, rows

from arkfast.engine import Engine, graphs
from arkfast.engine.ahead import HIGH, Ahead
from arkfast.testing import tiny_model
from arkfast.train.rollout_copy import WholeEngine
from arkfast.train.student import Student

GPU = torch.device("cuda", 1)


class Stream:
    def __init__(self, said: list[str], device: torch.device, name: str, priority: int = 0) -> None:
        self.said, self.device, self.name, self.priority = said, device, name, priority

    def wait_stream(self, other: Stream) -> None:
        assert other.device == self.device
        self.said.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the streams of a GPU, in order."""
    said: list[str] = []
    current = [Stream(said, GPU, "main")]

    @contextmanager
    def inside(stream: Stream) -> Iterator[None]:
        current.append(stream)
        try:
            yield
        finally:
            current.pop()

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", inside)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority=0: Stream(said, device, f"priority {priority}", priority))
    return said


@pytest.mark.parametrize("fails", [False, True])
def test_what_goes_first_stands_between_what_came_before_and_what_comes_after(said: list[str], fails: bool) -> None:
    ahead = Ahead(GPU)
    try:
        with ahead.first():
            said.append(f"decodes on {torch.cuda.current_stream(GPU).name}")
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert said == [f"priority {HIGH} waits for main", f"decodes on priority {HIGH}", f"main waits for priority {HIGH}"]
    assert torch.cuda.current_stream(GPU).name == "main"


def test_captured_steps_have_the_priority_of_the_stream_that_they_were_captured_on(said: list[str]) -> None:
    assert graphs._lent_stream(graphs.StepGraphs(None, torch.device("cuda", 5)), torch.device("cuda", 5)).priority == HIGH


def test_a_rollout_of_training_is_decoded_first(said: list[str]) -> None:
    model = tiny_model(seed=1)
    batch = make_batch()
    engine = Engine(model, allowed=ALLOWED)
    want = rows(engine.rollout(batch, max_new_tokens=8))
    student = Student(model, type("Units", (), {"recomputed": ()})())
    whole = WholeEngine(engine, student, None, lambda: 0)
    assert rows(whole.rollout(batch, max_new_tokens=8)) == want
    assert said == [], "a CPU has no streams"
    whole._ahead = Ahead(GPU)
    decode, where = engine.rollout, list[str]()
    engine.rollout = lambda *a, **b: (where.append(torch.cuda.current_stream(GPU).name), decode(*a, **b))[1]
    assert rows(whole.rollout(batch, max_new_tokens=8)) == want
    assert where == [f"priority {HIGH}"]
    assert said == [f"priority {HIGH} waits for main", f"main waits for priority {HIGH}"]
