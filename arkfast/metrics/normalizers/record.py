"""What a normaliser is: a function over texts and their languages, with a name, a version and a hash of its rules."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from arkfast.records import JsonObject, JsonRow


@dataclass(frozen=True, kw_only=True)
class Normalizer:
    """A normaliser and what tells it from others."""

    name: str
    """As it was asked for."""
    version: str
    """Of its rules or its package."""
    sha256: str
    """Of the files that hold its rules, and of its options: equal hashes are equal rules."""
    options: tuple[str, ...] = ()
    """What is taken out of the texts before (``normalizers.options``)."""
    apply: Callable[[Sequence[str], Sequence[str | None]], list[str]]
    """(texts, their languages) → normalised texts, as many as there are texts and in their order."""
    close: Callable[[], None] = lambda: None
    """Ends what it started; after that ``apply`` must not be called."""

    def identity(self) -> JsonObject:
        """Name, version, hash and options, for results: figures are comparable where these are equal."""
        return {"name": self.name, "version": self.version, "sha256": self.sha256, "options": list(self.options)}

    def label(self) -> str:
        """The identity as a reader sees it."""
        return label(self.identity())


def label(identity: JsonRow) -> str:
    """The identity of a result's normaliser as a reader sees it: name, version, the hash's beginning, and options where there are any."""
    options = f", options {', '.join(identity['options'])}" if identity.get("options") else ""
    return f"{identity['name']} {identity['version']} ({identity['sha256'][:12]}){options}"


def by_text(of_language: Callable[[str | None], Callable[[str], str]]) -> Callable[[Sequence[str], Sequence[str | None]], list[str]]:
    """``Normalizer.apply`` from a function that gives the function of a language; each language is asked for once."""
    cached = lru_cache(maxsize=None)(of_language)
    return lambda texts, languages: [cached(language)(text) for text, language in zip(texts, languages, strict=True)]


def hash_files(paths: Iterable[Path], *more: str) -> str:
    """SHA-256 of files' names and contents, in the order of their paths, and of further texts."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    for text in more:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()
