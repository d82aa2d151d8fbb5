"""The process that decodes, as the service sees it: started, watched, replaced when it dies, exchanged for one with another model."""

from __future__ import annotations

import asyncio
import itertools
import logging
import multiprocessing
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from arkfast.records import InputError, JsonObject
from arkfast.serve import child
from arkfast.serve.child import Cancel, Done, Grown, Ready, Refused, Stop, Submit
from arkfast.serve.errors import ApiError
from arkfast.serve.fair import Turns
from arkfast.serve.options import ServeConfig

log = logging.getLogger("arkfast.serve")

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds before a process that died is replaced; twice as long each time it dies again within ``SETTLED``."""
SETTLED = 60.0
AHEAD = 2
"""The process is given so many times as many clips as it has slots, so that one that ends is followed at once."""
STOP_SECONDS = 5.0


class Forgotten(Exception):
    """What was heard in a clip is not known any more; it needs features."""


class Wanted(NamedTuple):
    """A clip that an owner wants transcribed."""

    owner: str
    number: int
    """Tells clips apart."""
    submit: Submit
    answer: asyncio.Future[Done]
    grown: Callable[[str], None] | None
    """Is called with each part of its transcript that is certain."""


class Engine:
    """One process with a model, and the clips that it has.

    Args:
        config: what it is started with.
        moved: is called in the event loop when the process is ready, has answered or has ended.
    """

    def __init__(self, config: ServeConfig, moved: Callable[[Engine], None]) -> None:
        context = multiprocessing.get_context("spawn")
        self.config, self._moved = config, moved
        self._connection, theirs = context.Pipe()
        self._loop = asyncio.get_running_loop()
        self.process = context.Process(target=child.main, args=(theirs, config), name="arkfast-engine")
        self.process.start()
        theirs.close()
        self.started = time.monotonic()
        self.ready: asyncio.Future[Ready] = self._loop.create_future()
        """The model is loaded. An ``InputError`` says why it cannot be."""
        self.clips: dict[int, Wanted] = {}
        self.alive = True
        threading.Thread(target=self._listen, args=(self._connection,), daemon=True).start()

    @property
    def is_ready(self) -> bool:
        """Whether it takes clips."""
        return self.alive and self.ready.done() and not self.ready.cancelled() and self.ready.exception() is None

    def send(self, wanted: Wanted) -> None:
        """Give the process a clip."""
        self.clips[wanted.number] = wanted
        with suppress(OSError):  # it has died, and whoever watches it tells the clip
            self._connection.send(wanted.submit)

    def cancel(self, number: int) -> None:
        """Take a clip back."""
        if self.clips.pop(number, None) is not None:
            with suppress(OSError):
                self._connection.send(Cancel(number))

    async def stop(self) -> None:
        """End the process, by force where it does not end by itself."""
        with suppress(OSError):
            self._connection.send(Stop())
        until = time.monotonic() + STOP_SECONDS
        while self.process.is_alive() and time.monotonic() < until:
            await asyncio.sleep(0.02)
        self.process.kill()
        self.process.join(STOP_SECONDS)

    def _listen(self, connection: Connection) -> None:
        """In a thread: hand on what the process says until it has ended."""
        while True:
            try:
                message = connection.recv()
            except (EOFError, OSError):
                break
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._received, message)
        self.process.join()
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._gone)

    def _received(self, message: Ready | Refused | Grown | Done) -> None:
        if isinstance(message, Grown):
            wanted = self.clips.get(message.ticket)
            if wanted is not None and wanted.grown is not None:
                wanted.grown(message.text)
            return
        if isinstance(message, Ready):
            self.ready.set_result(message)
        elif isinstance(message, Refused):
            self.ready.set_exception(InputError(message.message))
        else:
            wanted = self.clips.pop(message.ticket, None)
            if wanted is not None and not wanted.answer.done():
                wanted.answer.set_result(message)
        self._moved(self)

    def _gone(self) -> None:
        self.alive = False
        if not self.ready.done():
            self.ready.set_exception(InputError(f"the engine's process ended with exit code {self.process.exitcode} before it was ready"))
        self._moved(self)


class Engines:
    """The engine that serves, and its successors.

    Args:
        config: what it is started with.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = self._given = config
        self._turns: Turns[Wanted] = Turns()
        self._numbers = itertools.count(1)
        self._current: Engine | None = None
        self._coming: Engine | None = None  # is being loaded beside it
        self._retired: list[Engine] = []
        self._failures, self._closing = 0, False
        self._restart: asyncio.Task[None] | None = None
        self._stopping: list[asyncio.Task[None]] = []
        self._swapping = asyncio.Lock()
        self._features: tuple[int, int] | None = None  # what recordings are made into
        self.deaths = 0
        """How often a process died."""
        self.known, self.unknown = 0, 0
        """Clips in which what is heard was known, and those that were encoded though it is kept."""

    @property
    def facts(self) -> Ready | None:
        """What the engine that serves said of itself; None while there is none."""
        current = self._current
        return current.ready.result() if current is not None and current.is_ready else None

    @property
    def waiting(self) -> int:
        """Clips that no engine has."""
        return len(self._turns)

    @property
    def busy(self) -> int:
        """Clips that engines have."""
        return sum(len(engine.clips) for engine in [*([self._current] if self._current else []), *self._retired])

    async def start(self) -> Ready:
        """Start the first engine and wait until it is ready.

        Raises:
            InputError: it cannot load the model, or ends before it is ready.
        """
        async with self._swapping:  # an exchange that is asked for meanwhile comes after it
            self._current = Engine(self.config, self._moved)
            ready = await asyncio.shield(self._current.ready)
            self._features = ready.features
            return ready

    async def decode(
        self,
        owner: str,
        *,
        key: str,
        features: Path | None,
        name: str | None = None,
        language: str | None = None,
        max_new_tokens: int | None = None,
        sampling: JsonObject | None = None,
        hotwords: tuple[str, ...] = (),
        words: bool = False,
        grown: Callable[[str], None] | None = None,
    ) -> Done:
        """A clip's transcript. Where the caller is cancelled, the clip's slot is freed.

        Args:
            owner: takes turns with the others.
            key, features, name, language, max_new_tokens, sampling, hotwords, words: see ``Submit``.
            grown: is called in the event loop with each part of the transcript that is certain before it is complete.

        Raises:
            ApiError: 503, the engine died or is not there; 500, it could not decode the clip; 400, no transcript can hold a hotword.
            Forgotten: there are no features, and what is heard is not known by its name any more.
        """
        if self.facts is None or self._closing:
            raise _restarting(self._wait_seconds())
        number = next(self._numbers)
        submit = Submit(
            ticket=number,
            key=key,
            features=features,
            name=name,
            language=language,
            max_new_tokens=max_new_tokens,
            sampling=sampling or {},
            hotwords=hotwords,
            words=words,
            watched=grown is not None,
        )
        wanted = Wanted(owner, number, submit, asyncio.get_running_loop().create_future(), grown)
        self._turns.add(owner, wanted)
        self._pump()
        try:
            done = await wanted.answer
        finally:
            if not wanted.answer.done() or wanted.answer.cancelled():
                self._forget(wanted)
        if done.fault == "forgotten":
            raise Forgotten
        if done.fault == "hotwords":
            message = "The field hotwords holds a phrase that no transcript can hold: the model takes a part of it for a special token."
            raise ApiError(400, message, param="hotwords", code="invalid_value")
        if done.fault is not None:
            log.error("clip failed: %s", done.error)
            raise ApiError(500, "The model could not decode the recording.", code="decoding_failed")
        self.known += done.known is True
        self.unknown += done.known is False
        return done

    async def exchange(self, model: Path, revision: str | None) -> Ready:
        """Load another model beside the one that serves, and let it take over; what the old one has, it finishes.

        ``--aligner`` and ``--processor_path`` belong to the model that they were given with: another one has times of words by a head of
        its own alone, and the tokenizer beside its weights.

        Raises:
            InputError: the model cannot be loaded, or hears other features; the old one goes on.
        """
        async with self._swapping:
            given = self._given
            config = replace(given, model=model, revision=revision)
            if (model, revision) != (given.model, given.revision):
                config = replace(config, aligner=None, processor_path=None)
            if self._closing:
                raise InputError(f"{model}: the service is stopping, so no model is loaded; start it again with this one")
            engine = self._coming = Engine(config, self._moved)
            try:
                ready = await asyncio.shield(engine.ready)
                if self._features not in (None, ready.features):
                    raise InputError(f"{model}: hears other features than the model that is served; start a service of its own for it")
            except BaseException:
                await engine.stop()
                raise
            finally:
                self._coming = None
            if self._restart is not None:
                self._restart.cancel()  # what was to follow an engine that died has been found
            old, self._current, self.config = self._current, engine, config
            if old is not None and old.alive:
                self._retired.append(old)
            self._moved(engine)
            return ready

    async def close(self) -> None:
        """End every process."""
        self._closing = True
        if self._restart is not None:
            self._restart.cancel()
        engines = [*(engine for engine in (self._current, self._coming) if engine is not None), *self._retired]
        await asyncio.gather(*(engine.stop() for engine in engines), *self._stopping)

    # -- inside ------------------------------------------------------------------------------------------------------------------------

    def _moved(self, engine: Engine) -> None:
        """Something became of an engine: it is ready, has answered, or has ended."""
        if not engine.alive:
            self._ended(engine)
        for old in [old for old in self._retired if not old.clips]:
            self._retired.remove(old)
            self._stopping.append(asyncio.ensure_future(old.stop()))
        self._pump()

    def _ended(self, engine: Engine) -> None:
        clips, engine.clips = list(engine.clips.values()), {}
        if engine in self._retired:
            self._retired.remove(engine)
        if engine is self._current and not self._closing:
            self._current = None
            self.deaths += 1
            self._failures = 1 if time.monotonic() - engine.started > SETTLED else self._failures + 1
            log.error("the engine's process ended with exit code %s; the next one starts in %g s", engine.process.exitcode, self._wait())
            self._restart = asyncio.ensure_future(self._start_again())
            while (waiting := self._turns.take()) is not None:
                clips.append(waiting)
        for wanted in clips:
            if not wanted.answer.done():
                wanted.answer.set_exception(_restarting(self._wait_seconds()))

    async def _start_again(self) -> None:
        await asyncio.sleep(self._wait())
        engine = self._current = Engine(self.config, self._moved)
        try:
            await asyncio.shield(engine.ready)
        except InputError as error:
            log.error("the engine could not be started again: %s", error)
        else:
            log.warning("the engine is ready again")

    def _wait(self) -> float:
        return min(LONGEST_WAIT, FIRST_WAIT * 2 ** max(0, self._failures - 1))

    def _wait_seconds(self) -> int:
        return max(1, round(self._wait()) + 1)

    def _pump(self) -> None:
        """Give the engine as many clips as it takes."""
        engine = self._current
        while engine is not None and engine.is_ready and len(engine.clips) < AHEAD * engine.ready.result().slots:
            wanted = self._turns.take()
            if wanted is None:
                return
            engine.send(wanted)

    def _forget(self, wanted: Wanted) -> None:
        if self._turns.remove(wanted.owner, wanted):
            return
        for engine in [*([self._current] if self._current else []), *self._retired]:
            engine.cancel(wanted.number)
        self._pump()


def _restarting(seconds: int) -> ApiError:
    return ApiError(503, "The engine is being restarted. Ask again in a moment.", code="engine_unavailable", retry_after=seconds)
