"""The page on which people try the service: its files, and what a browser may do with them.

The files hold no secret and are given without a key. Whatever the page asks the service for then needs one, where keys are needed.
"""

from __future__ import annotations

from pathlib import Path

from starlette.responses import Response

from arkfast.serve.answers import json_answer
from arkfast.serve.errors import ApiError
from arkfast.serve.options import ServeConfig

STATIC = Path(__file__).parent / "static"
INDEX = "index.html"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""The Content-Type of each kind of file that the page has."""
POLICY = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self'", "media-src blob:",
        "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'", "trusted-types 'none'",
    )
)  # fmt: skip
"""Content-Security-Policy: everything comes from the service itself but for the recordings that somebody plays, nothing is written into
the page as HTML, and no other page may frame it. https://www.w3.org/TR/CSP3/"""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Of the page's files, besides those of every answer."""


class Page:
    """The page of a service.

    Args:
        config: the service's flags, of which the page tells its readers the limits.
        keys: whether requests need a key.
    """

    def __init__(self, config: ServeConfig, *, keys: bool) -> None:
        self._config, self._keys = config, keys
        self._files = {path.name: (path.read_bytes(), KINDS[path.suffix]) for path in STATIC.iterdir() if path.suffix in KINDS}

    def file(self, name: str) -> Response:
        """A file of the page.

        Args:
            name: as it stands in its folder. It is looked up among them and never taken for a path.

        Raises:
            ApiError: 404.
        """
        if name not in self._files:
            raise ApiError(404, "The page has no such file.", code="not_found")
        content, kind = self._files[name]
        return Response(content, media_type=kind, headers=HEADERS)

    def settings(self, *, words: bool) -> Response:
        """What the page must know before it asks the service for anything.

        Args:
            words: whether the model that is served can tell when words were said.
        """
        config = self._config
        return json_answer(
            {
                "keys": self._keys,
                "max_upload_mb": config.max_upload_mb,
                "max_duration": config.max_duration,
                "max_new_tokens": config.max_new_tokens,
                "words": words,
            }
        )
