"""What a checkpoint holds, as digests by which a training run and a transcription know their models.

A file that is only renamed or linked has the same contents, and a folder whose files were replaced has others. Settings and the
processor's files count byte by byte. Of the weights, whichever files they stand in, the name, type and shape of every tensor count, and
``SAMPLE`` bytes at the start, the middle and the end of each, so that a model of any size takes a second or two. A change that misses all
of those bytes is not seen; no training step or merge does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from arkfast.files.json_input import parse_json_object
from arkfast.models.hub import PROCESSOR, SETTINGS
from arkfast.models.weights import weight_files
from arkfast.records import InputError, JsonRow

SAMPLE = 4096
"""Bytes that are read of a tensor, in three places each."""


def contents_of_model(folder: Path) -> dict[str, str]:
    """The digests of a checkpoint's files; of a folder that is none, of what is there. What is wrong with it is told when it is loaded."""
    found = {}
    for name in (*SETTINGS, *PROCESSOR):
        if (folder / name).is_file():
            found[name] = hashlib.blake2b((folder / name).read_bytes(), digest_size=16).hexdigest()
    try:
        files = weight_files(folder)
    except InputError:
        files = sorted(folder.glob("*.safetensors"))
    sampled: dict[str, str] = {}
    for file in files:
        sampled |= _sampled(file)
    if sampled:
        found["weights"] = digest(sorted(sampled.items()))
    return found


def digest_of(contents: Mapping[str, str]) -> str:
    """One short digest of contents."""
    return digest(sorted(contents.items()))[:16]


def digest(values: Iterable[object]) -> str:
    """One digest of values that JSON has a form for."""
    found = hashlib.blake2b(digest_size=16)
    for value in values:
        found.update(json.dumps(value).encode() + b"\n")
    return found.hexdigest()


def _sampled(file: Path) -> dict[str, str]:
    """Of each tensor of a safetensors file: type, shape and samples. A file that is not whole is known by its size."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if size > file.stat().st_size:
                raise ValueError("a header longer than the file")
            header = parse_json_object(stream.read(size))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            in_order = sorted(tensors.items(), key=lambda item: int(item[1]["data_offsets"][0]))
            return {name: _tensor(stream, entry, 8 + size) for name, entry in in_order}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {file.name: str(file.stat().st_size) if file.is_file() else ""}


def _tensor(stream: BinaryIO, entry: JsonRow, base: int) -> str:
    begin, end = (base + int(offset) for offset in entry["data_offsets"])
    digest = hashlib.blake2b(json.dumps([entry["dtype"], entry["shape"]]).encode(), digest_size=16)
    for start in sorted({begin, max(begin, (begin + end - SAMPLE) // 2), max(begin, end - SAMPLE)}):
        stream.seek(start)
        digest.update(stream.read(min(SAMPLE, end - start)))
    return digest.hexdigest()
