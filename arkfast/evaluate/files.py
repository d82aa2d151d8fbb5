"""Texts that appear whole or not at all, and what tells one file's content from another's.

Knows paths and bytes; knows no scores.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from arkfast.records import InputError

_BLOCK = 1 << 20  # bytes hashed at a time


def write_text(path: Path, text: str) -> None:
    """Write through a file beside ``path``, so that it is whole or as it was; missing folders are made.

    Half of a surrogate pair, which JSON escapes can spell and UTF-8 cannot, is written as such an escape.

    Raises:
        InputError: it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); give a path in a folder that you may write to") from error


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
