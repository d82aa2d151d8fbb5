"""Requests are held to a size and a time while they arrive, before anything is parsed."""

from __future__ import annotations

import asyncio
import time

from starlette.types import Message, Receive, Scope

from arkfast.serve.errors import ApiError

PASSED_BYTES, PASSED_SECONDS = 16_000_000, 2.0


def check_length(scope: Scope, most: int) -> None:
    """Refuse a request whose headers cannot be trusted or promise too much.

    Raises:
        ApiError: 400 for two lengths, or a length beside chunked coding, which two servers in a row may read differently; 413 for a
            request over ``most`` bytes.
    """
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    coded = any(name == b"transfer-encoding" for name, _ in scope["headers"])
    if len(lengths) + coded > 1:
        raise ApiError(400, "The request has more than one length.", code="invalid_length", close=True)
    if lengths and not lengths[0].isdigit():
        raise ApiError(400, "The request's length is no number.", code="invalid_length", close=True)
    if lengths and int(lengths[0]) > most:
        raise too_large(most)


async def passed_over(receive: Receive) -> bool:
    """Read the rest of a request that is refused, and say whether it has come to its end.

    A client that still sends when the connection closes may lose the answer, and with it the reason. What is more than ``PASSED_BYTES`` or
    slower than ``PASSED_SECONDS`` is cut off all the same.
    """
    seen, ends = 0, time.monotonic() + PASSED_SECONDS
    while seen <= PASSED_BYTES:
        try:
            message = await asyncio.wait_for(receive(), max(0.01, ends - time.monotonic()))
        except asyncio.TimeoutError:
            return False
        if message["type"] != "http.request" or not message.get("more_body", False):
            return True
        seen += len(message.get("body", b""))
    return False


def too_large(most: int, *, close: bool = True) -> ApiError:
    """The error of a request over ``most`` bytes."""
    return ApiError(413, f"The request is larger than {most / 1e6:g} MB, the most that this service takes.", code="too_large", close=close)


class Bounded:
    """A request's ``receive`` that ends it when it is too large or too slow.

    Args:
        receive: the server's.
        most: bytes of the body.
        seconds: within which the whole body must have arrived.
    """

    def __init__(self, receive: Receive, most: int, seconds: float) -> None:
        self._receive, self._most, self._ends = receive, most, time.monotonic() + seconds
        self._seen = 0
        self.done = False
        """Whether the whole body has been read, so that there is no rest of it to wait for."""

    async def __call__(self) -> Message:
        """The next message.

        Raises:
            ApiError: 413 or 408.
        """
        try:
            message = await asyncio.wait_for(self._receive(), max(0.01, self._ends - time.monotonic()))
        except asyncio.TimeoutError:
            raise ApiError(408, "The request arrived too slowly.", code="upload_timeout", close=True) from None
        if message["type"] == "http.request":
            self._seen += len(message.get("body", b""))
            self.done = not message.get("more_body", False)
            if self._seen > self._most:
                raise too_large(self._most, close=not self.done)
        return message
