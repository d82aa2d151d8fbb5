"""Paths on a page: what a player opens, and what a reader is shown of all others.

No recording is opened. A page travels, so what it says of a machine's folders is no more
than its players need.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from urllib.parse import quote, unquote

from arkfast.records import JsonRow

_FILE = "file://"
# a whole path up to its last name; a folder's name may hold spaces, but does not end in one
_FOLDERS = re.compile(rf"""(?<![\w./])(?:{_FILE})?/(?:[^/:'"\n]*[^/:'"\s]/)+(?=[^/:'"\s])""")


def from_page(rows: Iterable[JsonRow], start: Path, folder: Path) -> Iterator[JsonRow]:
    """Rows with their relative ``audio`` as a page names it, so that page and recordings can be moved together.

    Args:
        rows: with ``audio`` as the data has it.
        start: folder that relative paths start from there: the manifest's.
        folder: folder of the page.
    """
    way = os.path.relpath(start, folder)
    for row in rows:
        audio = row.get("audio")
        if isinstance(audio, str) and audio and not audio.startswith("/") and "::" not in audio and "://" not in audio:
            yield {**row, "audio": os.path.normpath(os.path.join(way, audio))}
        else:
            yield row


def address(audio: object, folder: Path) -> str:
    """What a page links to for a row's ``audio``: a file: address for a whole path, a relative one for a path relative to the page.

    Args:
        audio: a row's field, as ``from_page`` gives it.
        folder: folder of the page.

    Returns:
        The address; empty where it is no file of its own (a shard's member, an address elsewhere, samples), or no such file is there.
    """
    if not isinstance(audio, str) or not audio or "::" in audio:
        return ""
    path = unquote(audio.removeprefix(_FILE)) if audio.startswith(_FILE) else audio
    # taken together as a browser does, which knows no links between folders
    if "://" in path or not os.path.isfile(os.path.normpath(os.path.join(os.path.abspath(folder), path))):
        return ""
    return (_FILE if path.startswith("/") else "") + quote(os.fsencode(path))


def title(row: JsonRow) -> str:
    """What a page calls a clip: its id, else its recording's name."""
    audio = row.get("audio")
    return without_folders(str(row.get("id") or (PurePath(audio).name if isinstance(audio, str) else "") or "unnamed clip"))


def without_folders(text: str) -> str:
    """A text, such as an error, in which of whole paths only the last name is left."""
    return _FOLDERS.sub("", text)
