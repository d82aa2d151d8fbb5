"""What stands around every request: an id, a log line, checks of where it comes from, and headers of the answer."""

from __future__ import annotations

import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arkfast.serve.answers import json_answer
from arkfast.serve.body import passed_over
from arkfast.serve.errors import ApiError
from arkfast.serve.logs import FIELDS
from arkfast.serve.metrics import Metrics

log = logging.getLogger("arkfast.serve")

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Of every answer that does not say otherwise."""
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SAFE = ("GET", "HEAD", "OPTIONS")


class Guard:
    """The outermost layer of the application.

    Args:
        app: what answers.
        metrics: where requests are counted.
        origins: whose pages may call, besides the service's own.
        own_hosts: whether requests must call the service by a name of this machine, because it is bound to it and wants no key: otherwise
            a foreign page whose name was made to point here could call it (DNS rebinding).
        routes: paths that are counted by their name; all others are counted together.
        most_connections: above which every request is refused.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        origins: Collection[str],
        own_hosts: bool,
        routes: Collection[str],
        most_connections: int,
    ) -> None:
        self._app, self._metrics, self._origins, self._own_hosts, self._routes = app, metrics, frozenset(origins), own_hosts, routes
        self._most_connections = most_connections
        self.connections: Collection[object] = ()
        """Those that the server has; whoever runs the server says so here."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = _header(scope, b"x-request-id")
        number = given if _ID.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = number
        started, status = time.perf_counter(), 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                known = {name.lower() for name, _ in headers}
                extra = HEADERS | {"X-Request-ID": number}
                headers.extend((k.lower().encode(), v.encode()) for k, v in extra.items() if k.lower().encode() not in known)
            await send(message)

        try:
            if (refused := self._refused(scope)) is not None:
                await passed_over(receive)
                answer = json_answer(refused.body(), status=refused.status, headers=refused.headers())
                await answer(scope, receive, told)
            else:
                await self._app(scope, receive, told)
        finally:
            seconds = time.perf_counter() - started
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._metrics.requests.labels(route, str(status or 499)).inc()
            self._metrics.latency.labels(route).observe(seconds)
            line = {"request": number, "method": scope["method"][:16], "route": route, "status": status or 499}
            log.info("request", extra={FIELDS: line | {"seconds": round(seconds, 4)} | state.get("log", {})})

    def _refused(self, scope: Scope) -> ApiError | None:
        if len(self.connections) > self._most_connections:
            return ApiError(503, "Too many connections are open.", code="overloaded", retry_after=2, close=True)
        host = _header(scope, b"host")
        if self._own_hosts and not is_own_name(host):
            return ApiError(403, "The service answers to this machine's own names only.", code="host_not_allowed", close=True)
        origin = _header(scope, b"origin")
        if not origin or scope["method"] in _SAFE or origin in self._origins or _is_of(origin, host):
            return None
        return ApiError(403, "Pages of another origin may not call this service.", code="origin_not_allowed", close=True)


def is_own_name(host: str) -> bool:
    """Whether a Host header names this machine by its loopback."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_of(origin: str, host: str) -> bool:
    """Whether an Origin header names the pages of a host."""
    try:
        return urlsplit(origin).netloc == host
    except ValueError:  # it names nobody's
        return False


def _header(scope: Scope, name: bytes) -> str:
    values: list[bytes] = [value for key, value in scope["headers"] if key == name]
    return values[0].decode("latin-1") if len(values) == 1 else ""
