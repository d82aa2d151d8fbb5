"""Manifests and rows of transcriptions with a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TOKENS = "24"
"""Longest transcript."""
SECONDS = (0.4, 1.3, 0.7, 2.1, 0.9)
"""Of the recordings 0.wav to 4.wav."""


def rows_of(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def write_manifest(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")
    return path
