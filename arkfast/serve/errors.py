"""What a client is told when a request fails: OpenAI's error body, in words that name the field and never the machine."""

from __future__ import annotations

import errno
import logging
from typing import Literal

from arkfast.records import JsonObject

log = logging.getLogger("arkfast.serve")

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of an ``OSError`` by which a disk says that it is full."""
Kind = Literal["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]
_KINDS: dict[int, Kind] = {401: "authentication_error", 403: "authentication_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that gets no transcript.

    Args:
        status: of the answer.
        message: one or two sentences for the client. It holds nothing that the client did not send or that the documents do not say.
        param: the field at fault, where it is one.
        code: a word by which programs tell errors apart.
        retry_after: seconds after which it is worth to ask again.
        close: the connection ends with the answer, because the rest of the request is not read.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after, self.close = status, message, param, code, retry_after, close

    def body(self) -> JsonObject:
        """OpenAI's form (https://platform.openai.com/docs/guides/error-codes)."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers | ({"Connection": "close"} if self.close else {})


def no_room(*, close: bool = False) -> ApiError:
    """The error of a request that the spool cannot hold; the log says so, too."""
    log.error("the spool has no room for a recording")
    return ApiError(503, "The service has no room for the recording.", code="no_room", retry_after=10, close=close)
