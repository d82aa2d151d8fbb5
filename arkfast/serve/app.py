"""The service's routes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

import numpy as np
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from arkfast import __version__
from arkfast.files.json_input import parse_json_object
from arkfast.records import InputError
from arkfast.serve import description, fields
from arkfast.serve.answers import WARNINGS_HEADER, answer, error_event, events, json_answer, original_answer
from arkfast.serve.body import Bounded, check_length, passed_over
from arkfast.serve.description import Description
from arkfast.serve.engines import Engines
from arkfast.serve.errors import ApiError
from arkfast.serve.fields import Asked
from arkfast.serve.form import received
from arkfast.serve.guard import Guard
from arkfast.serve.hearing import Hearing, Limits
from arkfast.serve.limits import House, Keys
from arkfast.serve.logs import FIELDS
from arkfast.serve.metrics import CONTENT_TYPE, Metrics
from arkfast.serve.options import NAME, ServeConfig
from arkfast.serve.page import INDEX, Page
from arkfast.serve.spool import Spool
from arkfast.serve.work import Transcript, Work

log = logging.getLogger("arkfast.serve")
T = TypeVar("T")

READY_FOR = 2.0
"""Seconds for which an answer of ``GET /ready`` holds, so that asking often costs nothing."""
READY_SECONDS = 10.0
READ_SECONDS = 5.0
"""Within which a client must have read the last of a stream whose time is over."""
MOST_ADMIN_BYTES = 10_000
ROUTES = (
    "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/models", "/asr", "/token-mask", "/health", "/ready", "/metrics",
    "/admin/model", "/", "/ui", "/page/settings.json", "/page/{name}",
)  # fmt: skip
"""Every route, as it is described. Requests are counted by these names; those of the page's files count among unknown paths."""


class Service:
    """Everything behind the routes.

    Args:
        config: the flags.

    Raises:
        InputError: keys that cannot be used, an address that needs some, or a spool that cannot be made.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self._keys, self._admin = Keys(config.key_lines()), Keys(config.admin_lines())
        if config.is_public and not self._keys and not config.public_without_keys:
            raise InputError(
                f"--host {config.host}: other machines can reach this address, and there is no key; give --api_keys FILE, or "
                "--public_without_keys if everybody who reaches it may use the service"
            )
        self.house, self.metrics = House(config.max_requests, config.max_requests_per_key), Metrics()
        self.engines = Engines(config)
        self._spool = Spool(config.spool)
        self._page = Page(config, keys=bool(self._keys))
        self._work: Work | None = None
        self._hearing: Hearing | None = None
        self._ready_until, self._readiness = 0.0, asyncio.Lock()
        self._created = int(time.time())
        self.app = self._guarded(self._routes())

    async def start(self) -> None:
        """Load the model.

        Raises:
            InputError: it cannot be loaded, or recordings cannot be read as the flags ask.
        """
        ready = await self.engines.start()
        limits = Limits(
            n_mels=ready.n_mels,
            least_samples=ready.least_samples,
            longest_clip=self.config.max_audio_seconds,
            max_duration=self.config.max_duration,
            vad=self.config.vad,
            seconds=self.config.timeout,
        )
        self._hearing = Hearing(self.config.num_workers, limits, self.config.timeout)
        await self._hearing.start()
        self._work = Work(self.engines, self._hearing, knows=self.config.encoder_cache_mb > 0, streams=self.config.no_speech != "skip")
        silence = np.zeros((ready.n_mels, 100), dtype=np.float32)
        np.save(self._silence, silence)
        log.info("ready: %s on %s in %s", self.model_name, ready.device, ready.dtype)

    async def close(self) -> None:
        """End every process and remove the spool."""
        self.house.closing = True
        await self.engines.close()
        if self._hearing is not None:
            self._hearing.close()
        self._spool.close()

    @property
    def model_name(self) -> str:
        """What the served model is called, without a path."""
        model = self.engines.config.model
        return model.name if model.is_dir() else str(model)

    @property
    def names(self) -> tuple[str, ...]:
        """All that clients may call it."""
        return tuple(dict.fromkeys((NAME, self.model_name)))

    @property
    def spool(self) -> Path:
        """The folder of uploads that are worked on."""
        return self._spool.path

    @property
    def _silence(self) -> Path:
        return self._spool.path / "silence.npy"

    # -- routes ------------------------------------------------------------------------------------------------------------------------

    def _routes(self) -> FastAPI:
        app = FastAPI(title="arkfast", version=__version__, docs_url=None, redoc_url=None)
        for kind, handler in ((ApiError, _told), (HTTPException, _http), (ClientDisconnect, _gone), (Exception, _failed)):
            app.add_exception_handler(kind, handler)
        for path, method, route, said in (
            ("/v1/audio/transcriptions", "POST", self._transcriptions, description.TRANSCRIPTIONS),
            ("/v1/audio/translations", "POST", self._translations, description.TRANSLATIONS),
            ("/asr", "POST", self._asr, description.ASR),
            ("/v1/models", "GET", self._models, description.MODELS),
            ("/token-mask", "GET", self._token_mask, description.TOKEN_MASK),
            ("/health", "GET", self._health, description.HEALTH),
            ("/ready", "GET", self._ready, description.READY),
            ("/metrics", "GET", self._metrics, description.METRICS),
            ("/", "GET", self._index, description.PAGE),
            ("/ui", "GET", self._index, description.PAGE),
            ("/page/settings.json", "GET", self._settings, description.SETTINGS),
            ("/page/{name}", "GET", self._page_file, description.PAGE_FILE),
        ):
            _add(app, path, method, route, said)
        if self._admin:
            _add(app, "/admin/model", "POST", self._model, description.MODEL)
        return app

    def _guarded(self, app: FastAPI) -> Guard:
        config = self.config
        inner: ASGIApp = app
        if config.cors_origin:
            inner = CORSMiddleware(
                inner,
                allow_origins=config.cors_origin,
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization"],
                expose_headers=[WARNINGS_HEADER],
            )
        own = not config.is_public and not self._keys
        most = 4 * config.max_requests + 16
        return Guard(inner, metrics=self.metrics, origins=config.cors_origin, own_hosts=own, routes=ROUTES, most_connections=most)

    async def _transcriptions(self, request: Request) -> Response:
        return await self._transcribed(request, original=False)

    async def _asr(self, request: Request) -> Response:
        return await self._transcribed(request, original=True)

    async def _translations(self, request: Request) -> Response:
        self._owner(request)
        message = f"The model '{self.model_name}' does not translate. Send the recording to /v1/audio/transcriptions."
        raise ApiError(400, message, param="model", code="unsupported_model", close=True)

    async def _models(self, request: Request) -> Response:
        self._owner(request)
        models = [{"id": name, "object": "model", "created": self._created, "owned_by": "arkfast"} for name in self.names]
        return json_answer({"object": "list", "data": models})

    async def _token_mask(self, request: Request) -> Response:
        self._owner(request)
        facts = self.engines.facts
        if facts is None:
            raise ApiError(503, "The model is being loaded.", code="engine_unavailable", retry_after=5)
        return json_answer(facts.token_mask)

    async def _health(self) -> Response:
        return json_answer({"status": "ok"})

    async def _ready(self) -> Response:
        if self._work is None:
            raise ApiError(503, "The model is being loaded.", code="engine_unavailable", retry_after=5)
        async with self._readiness:
            if self.engines.facts is None or time.monotonic() >= self._ready_until:
                await self._decode_silence()
                self._ready_until = time.monotonic() + READY_FOR
        return json_answer({"status": "ready", "model": self.model_name})

    async def _metrics(self, request: Request) -> Response:
        self._owner(request)
        metrics, engines = self.metrics, self.engines
        metrics.inside.set(self.house.count)
        metrics.waiting.set(engines.waiting)
        metrics.busy.set(engines.busy)
        metrics.deaths.set(engines.deaths)
        metrics.crashes.set(0 if self._hearing is None else self._hearing.crashes)
        metrics.known.set(engines.known)
        metrics.unknown.set(engines.unknown)
        metrics.ready.set(engines.facts is not None)
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    async def _index(self) -> Response:
        return self._page.file(INDEX)

    async def _settings(self) -> Response:
        facts = self.engines.facts
        return self._page.settings(words=facts is not None and facts.words)

    async def _page_file(self, request: Request) -> Response:
        return self._page.file(request.path_params["name"])

    async def _model(self, request: Request) -> Response:
        self._admin.owner(request.headers.get("authorization"))
        check_length(request.scope, MOST_ADMIN_BYTES)
        body = await Request(request.scope, Bounded(request.receive, MOST_ADMIN_BYTES, 10.0)).body()
        try:
            given = parse_json_object(body)
        except ValueError:
            given = {}
        model, revision = given.get("model"), given.get("revision")
        if (
            not isinstance(model, str)
            or not model
            or not (revision is None or isinstance(revision, str))
            or set(given) - {"model", "revision"}
        ):
            raise ApiError(400, 'Send {"model": "organisation/name or folder", "revision": null} as JSON.', code="invalid_value")
        try:
            ready = await self.engines.exchange(Path(model), revision)
        except InputError as error:
            log.error("the model could not be exchanged: %s", error)
            raise ApiError(
                400, "The model cannot be loaded; the old one goes on. The log says why.", param="model", code="invalid_value"
            ) from None
        return json_answer({"model": self.model_name, "device": ready.device, "dtype": ready.dtype})

    # -- a transcription ---------------------------------------------------------------------------------------------------------------

    async def _transcribed(self, request: Request, *, original: bool) -> Response:
        started = time.perf_counter()
        owner = self._owner(request)
        config, work, facts = self.config, self._work, self.engines.facts
        if work is None or facts is None:
            raise ApiError(503, "The model is being loaded. Ask again in a moment.", code="engine_unavailable", retry_after=5, close=True)
        async with AsyncExitStack() as stack:
            stack.enter_context(self.house.entered(owner))
            folder = stack.enter_context(self._spool.folder())
            form = await received(request, folder, most=int(config.max_upload_mb * 1e6), seconds=config.upload_timeout)
            asked = fields.asked(form.fields, names=self.names, max_new_tokens=config.max_new_tokens, original=original)
            if asked.words and not facts.words:
                message = (
                    "Times of words are not known here: the model that is served has no head for them. Leave out word, or have the service "
                    "started with --aligner and a head that arkfast train --stage ctc_head made for the model."
                )
                raise ApiError(400, message, param="timestamp_granularities[]", code="unsupported_value")
            ends = time.monotonic() + config.timeout
            transcript = await self._attended(request, work.begin(owner, form.recording, folder / "clips", asked), ends)
            if asked.stream:
                return _Streamed(self._events(request, owner, work, transcript, asked, ends), stack.pop_all(), ends)
            await self._attended(request, _complete(owner, work, transcript, asked), ends)
            self._count(request, owner, transcript)
        return original_answer(transcript, asked, time.perf_counter() - started) if original else answer(transcript, asked)

    async def _events(
        self, request: Request, owner: str, work: Work, transcript: Transcript, asked: Asked, ends: float
    ) -> AsyncGenerator[bytes, None]:
        async with work.decoding(owner, transcript, asked) as deltas:
            source = events(transcript, deltas)
            while True:
                try:
                    event = await asyncio.wait_for(anext(source), max(0.01, ends - time.monotonic()))
                except StopAsyncIteration:
                    break
                except asyncio.TimeoutError:
                    yield error_event(_too_long())
                    break
                yield event
        if transcript.is_complete:
            self._count(request, owner, transcript)

    async def _attended(self, request: Request, work: Awaitable[T], ends: float) -> T:
        """The work's result; it is cancelled when the client goes away or the time is over.

        Raises:
            ApiError: 503, it took too long.
            ClientDisconnect: nobody waits for the answer.
        """
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait((task, gone), timeout=max(0.0, ends - time.monotonic()), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise ClientDisconnect
            raise _too_long()
        finally:
            for each in (task, gone):
                each.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def _decode_silence(self) -> None:
        try:
            await asyncio.wait_for(self.engines.decode("", key="ready", features=self._silence, max_new_tokens=1), READY_SECONDS)
        except asyncio.TimeoutError:
            raise ApiError(503, "The engine does not answer.", code="engine_unavailable", retry_after=10) from None
        except ApiError as error:
            raise ApiError(503, error.message, code=error.code, retry_after=error.retry_after or 5) from None

    def _owner(self, request: Request) -> str:
        """Whose request it is: the name of its key, or without keys its address.

        Raises:
            ApiError: 401.
        """
        if self._keys:
            return self._keys.owner(request.headers.get("authorization"))
        return request.client.host if request.client else "unknown"

    def _count(self, request: Request, owner: str, transcript: Transcript) -> None:
        key = owner if self._keys else "anyone"
        self.metrics.by_key.labels(key).inc()
        self.metrics.audio.labels(key).inc(transcript.heard.seconds)
        request.scope["state"]["log"] = {"key": key, "audio_seconds": round(transcript.heard.seconds, 3), "clips": len(transcript.said)}


class _Streamed(StreamingResponse):
    """Server-sent events, with what must be let go when they end, however they do: a client that does not read them has its time, too.

    Args:
        content: the events.
        held: is closed behind them.
        ends: when they are over, by ``time.monotonic``.
    """

    def __init__(self, content: AsyncGenerator[bytes, None], held: AsyncExitStack, ends: float) -> None:
        # By that header nginx hands each event on as it comes, whatever it is told of other answers.
        super().__init__(content, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._content, self._held, self._ends = content, held, ends

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            try:
                sent = super().__call__(scope, receive, send)
                await asyncio.wait_for(sent, max(0.0, self._ends - time.monotonic()) + READ_SECONDS)
            except asyncio.TimeoutError:
                log.warning("a client did not read its stream in time")  # the server closes a connection whose answer is not whole
            finally:
                await self._content.aclose()


async def _complete(owner: str, work: Work, transcript: Transcript, asked: Asked) -> None:
    async with work.decoding(owner, transcript, asked) as deltas:
        async for _ in deltas:
            pass


def _too_long() -> ApiError:
    return ApiError(503, "The request took too long.", code="timeout", retry_after=10)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add(app: FastAPI, path: str, method: str, route: Callable[..., Awaitable[Response]], said: Description) -> None:
    app.add_api_route(
        path, route, methods=[method], response_model=None, summary=said.summary, responses=said.responses, openapi_extra=said.extra
    )


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    if error.close:
        await passed_over(request.receive)
    return json_answer(error.body(), status=error.status, headers=error.headers())


_OF_STATUS = {404: "There is no such route.", 405: "The route does not take this method."}


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = _OF_STATUS.get(error.status_code, "The request cannot be answered.")
    headers = dict(error.headers or {})
    return json_answer(ApiError(error.status_code, message, code="invalid_request").body(), status=error.status_code, headers=headers)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; the log does


async def _failed(request: Request, error: Exception) -> Response:
    number = request.scope.get("state", {}).get("request_id")
    log.error("a request failed: %s", type(error).__name__, exc_info=error, extra={FIELDS: {"request": number}})
    return json_answer(ApiError(500, "The service failed. Its log says why.", code="internal_error").body(), status=500)
