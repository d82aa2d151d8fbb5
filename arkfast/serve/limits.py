"""Who may ask, and for how much at a time."""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from arkfast.records import InputError
from arkfast.serve.errors import ApiError

LEAST_KEY = 16
"""Characters of a key. A shorter one can be guessed."""


class Keys:
    """The keys that a service knows, each with a name that may stand in logs. Only digests are kept.

    Args:
        lines: (where it stands, ``NAME:KEY`` or ``KEY``) of each.

    Raises:
        InputError: a key that is short, holds a blank or stands twice, or a name that stands twice.
    """

    def __init__(self, lines: Sequence[tuple[str, str]]) -> None:
        self._names: dict[bytes, str] = {}
        for number, (where, line) in enumerate(lines, start=1):
            name, colon, key = line.partition(":")
            if not colon:
                name, key = f"key-{number}", line
            if len(key) < LEAST_KEY or not key.isascii() or any(character.isspace() for character in key):
                raise InputError(
                    f"{where}: a key has at least {LEAST_KEY} ASCII characters and no blank; make one with: openssl rand -hex 24"
                )
            digest = _digest(key)
            if digest in self._names:
                raise InputError(f"{where}: the key stands twice; leave one of them out")
            if name in self._names.values() or not name:
                raise InputError(f"{where}: the name '{name}' is empty or stands twice; give every key a name of its own")
            self._names[digest] = name

    def __bool__(self) -> bool:
        """Whether a key is needed."""
        return bool(self._names)

    def owner(self, authorization: str | None) -> str:
        """The name of the key in an ``Authorization: Bearer`` header.

        All keys are compared, each in constant time, so that the time says nothing about them.

        Raises:
            ApiError: 401, there is no key or it is not known.
        """
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            message = "No API key was given. Send it in the header 'Authorization: Bearer KEY'."
            raise ApiError(401, message, code="missing_api_key", close=True)
        given, found = _digest(key.strip()), None
        for digest, name in self._names.items():
            if hmac.compare_digest(digest, given):
                found = name
        if found is None:
            raise ApiError(401, "The API key is not known.", code="invalid_api_key", close=True)
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


class House:
    """How many requests are in the house, in all and by owner. Whoever enters is counted before anything of the request is read.

    Args:
        most: requests at once.
        most_per_owner: requests of one owner at once.
    """

    def __init__(self, most: int, most_per_owner: int) -> None:
        self._most, self._most_per_owner = most, most_per_owner
        self._inside: Counter[str] = Counter()
        self.closing = False
        """Whether the service is stopping, so that nobody may enter."""

    @property
    def count(self) -> int:
        """Requests in the house."""
        return self._inside.total()

    @contextmanager
    def entered(self, owner: str) -> Iterator[None]:
        """A block during which a request is in the house.

        Raises:
            ApiError: 429 where the house is full or the owner has too many requests in it, 503 where the service is stopping.
        """
        if self.closing:
            raise ApiError(503, "The service is stopping.", code="stopping", retry_after=10, close=True)
        if self._inside[owner] >= self._most_per_owner:
            message = f"Too many requests at once: {self._most_per_owner} of this key are under way."
            raise ApiError(429, message, code="rate_limit_exceeded", retry_after=1, close=True)
        if self.count >= self._most:
            message = "The service is full. Ask again in a moment."
            raise ApiError(429, message, code="overloaded", retry_after=2, close=True)
        self._inside[owner] += 1
        try:
            yield
        finally:
            self._inside[owner] -= 1
            if not self._inside[owner]:
                del self._inside[owner]
