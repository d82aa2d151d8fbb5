"""Engines that follow each other: a model that is exchanged, one that died, and a service that stops meanwhile. None is left over."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from arkfast.records import InputError
from arkfast.serve import engines
from arkfast.serve.child import Ready
from arkfast.serve.engines import Engine, Engines
from arkfast.serve.options import ServeConfig


class Stand(Engine):
    """An engine without a process. Its model's name says what it hears, and whether it becomes ready by itself."""

    made: list[Stand]

    def __init__(self, config: ServeConfig, moved: Any) -> None:
        self.config, self.clips, self.alive, self.stopped, self.started = config, {}, True, False, 0.0
        self.process = SimpleNamespace(exitcode=1)
        self.ready = asyncio.get_running_loop().create_future()
        if config.model.name != "slow":
            self.load()
        Stand.made.append(self)

    def load(self) -> None:
        self.ready.set_result(
            Ready(
                n_mels=80 if self.config.model.name == "narrow" else 128, least_samples=400, slots=1, device="cpu", dtype="float32",
                commit=None, words=self.config.aligner is not None, told=True, token_mask={},
            )
        )  # fmt: skip

    async def stop(self) -> None:
        self.stopped, self.alive = True, False
        if not self.ready.done():
            self.ready.set_exception(InputError("ended before it was ready"))


@pytest.fixture(autouse=True)
def stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "Engine", Stand)
    monkeypatch.setattr(engines, "FIRST_WAIT", 0.1)
    Stand.made = []


def serving() -> list[str]:
    """Models whose engines were not stopped and did not die."""
    return [engine.config.model.name for engine in Stand.made if engine.alive]


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def test_another_model_brings_its_own_head_and_must_hear_the_same_features() -> None:
    async def exchanged() -> None:
        served = Engines(ServeConfig(model=Path("a"), aligner=Path("head"), processor_path=Path("tokenizer")))
        await served.start()
        assert (await served.exchange(Path("a"), None)).words, "SIGHUP loads the same model with the same head"
        assert not (await served.exchange(Path("b"), None)).words
        assert served.config.processor_path is None, "another model has its own tokenizer"
        with pytest.raises(InputError, match="other features"):
            await served.exchange(Path("narrow"), None)
        assert served.config.model == Path("b"), "the old one goes on"
        assert (await served.exchange(Path("a"), None)).words, "the first one's head comes back with it"
        assert served.config.processor_path == Path("tokenizer")
        await served.close()
        assert serving() == []

    run(exchanged())


def test_a_model_that_follows_one_that_died_is_not_replaced_by_it() -> None:
    async def exchanged() -> None:
        served = Engines(ServeConfig(model=Path("a")))
        await served.start()
        Stand.made[0].alive = False
        served._moved(Stand.made[0])  # the next one of the same model starts in a moment
        await served.exchange(Path("b"), None)
        await asyncio.sleep(0.3)
        assert (served.facts is not None, serving()) == (True, ["b"])
        await served.close()
        assert serving() == []

    run(exchanged())


def test_a_model_that_is_being_loaded_ends_with_the_service() -> None:
    async def stopped() -> None:
        served = Engines(ServeConfig(model=Path("a")))
        await served.start()
        coming = asyncio.ensure_future(served.exchange(Path("slow"), None))
        await asyncio.sleep(0)
        assert serving() == ["a", "slow"]
        await served.close()
        with pytest.raises(InputError, match="before it was ready"):
            await coming
        with pytest.raises(InputError, match="is stopping"):
            await served.exchange(Path("b"), None)
        assert serving() == []

    run(stopped())


def test_an_exchange_waits_for_the_first_model() -> None:
    async def exchanged() -> None:
        served = Engines(ServeConfig(model=Path("slow")))
        starting = asyncio.ensure_future(served.start())
        await asyncio.sleep(0)
        following = asyncio.ensure_future(served.exchange(Path("b"), None))
        await asyncio.sleep(0)
        assert serving() == ["slow"]
        Stand.made[0].load()
        await starting
        await following
        await asyncio.sleep(0)
        assert serving() == ["b"]
        await served.close()

    run(exchanged())
