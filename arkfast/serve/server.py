"""The service in a process: its address, its signals, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from arkfast.records import InputError
from arkfast.serve.app import Service
from arkfast.serve.connections import Connection
from arkfast.serve.options import ServeConfig

log = logging.getLogger("arkfast.serve")


class _Server(uvicorn.Server):
    """Leaves signals to ``_on_signals``: uvicorn's own handling would end the process before the engine and the spool are gone."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run(config: ServeConfig) -> int:
    """Serve until a signal or a failure ends it; returns the exit code.

    Raises:
        InputError: the flags, the keys or the model are at fault.
    """
    service = Service(config)
    listening = _bound(config)
    server = _Server(
        uvicorn.Config(
            service.app,
            http=Connection,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=max(1, round(config.drain_seconds)),
        )
    )
    service.app.connections = server.server_state.connections
    starting = asyncio.ensure_future(service.start())
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    try:
        # The parser of forms keeps an upload where temporary files go until it is whole: that is the spool, too.
        tempfile.tempdir = str(service.spool)
        _on_signals(server, service)
        await asyncio.wait((starting, serving), return_when=asyncio.FIRST_COMPLETED)
        if starting.done() and starting.exception() is None:
            _say(listening, service.model_name)
        elif starting.done():
            server.should_exit = True
        await asyncio.wait((serving,))
        if starting.done() and not starting.cancelled() and (error := starting.exception()) is not None:
            raise error
        return 0 if server.started else 1
    finally:
        starting.cancel()
        tempfile.tempdir = None
        await service.close()


def _say(listening: socket.socket, model: str) -> None:
    host, port = listening.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    print(f"arkfast serve: {model} is ready at http://{address}:{port}", flush=True)


def _on_signals(server: uvicorn.Server, service: Service) -> None:
    """Stop on SIGINT and SIGTERM once what runs is finished, at once on a second one; load the model anew on SIGHUP."""
    loop = asyncio.get_running_loop()
    reloading: set[asyncio.Task[None]] = set()

    def stop() -> None:
        service.house.closing = True
        server.force_exit = server.should_exit
        server.should_exit = True

    async def load_anew() -> None:
        config = service.engines.config
        try:
            await service.engines.exchange(config.model, config.revision)
        except InputError as error:
            log.error("the model could not be loaded anew: %s", error)

    def reload() -> None:
        task = asyncio.ensure_future(load_anew())
        reloading.add(task)
        task.add_done_callback(reloading.discard)

    loop.add_signal_handler(signal.SIGINT, stop)
    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGHUP, reload)


def _bound(config: ServeConfig) -> socket.socket:
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((config.host, config.port), family=family, backlog=512)
    except OSError as error:
        raise InputError(f"--host {config.host} --port {config.port}: cannot be listened on ({error.strerror}); give another") from error
