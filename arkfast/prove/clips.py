"""The clips that are compared, and the rows on which WER is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arkfast.data import read_manifest
from arkfast.data.collate import read_clip
from arkfast.data.tasks import find_task
from arkfast.files import json_text, write_text
from arkfast.prove.config import ProveConfig
from arkfast.records import JsonObject, Utterance

DEV_ROWS = 100
"""Rows of train_data on which WER is measured where there is no eval_data."""


@dataclass(frozen=True)
class Clip:
    """A row with its samples."""

    row: Utterance
    samples: np.ndarray
    """float32 [n] at 16 kHz."""


def choose(config: ProveConfig) -> list[Clip]:
    """Clips of different lengths from all over the manifest, the shortest first; both manifests are read to their ends.

    Raises:
        InputError: a row of a manifest is wrong, one of eval_data has no reference, or audio cannot be used.
    """
    rows = read_manifest(config.train_data)
    for row in read_manifest(config.eval_data) if config.eval_data is not None else ():
        find_task("asr").check_reference(row)
    most = min(4 * config.clips, len(rows))
    heard = sorted((Clip(row, _samples(row, config.max_audio_seconds)) for row in (rows[i * len(rows) // most] for i in range(most))),
                   key=_length)  # fmt: skip
    count = min(config.clips, len(heard))
    return [heard[i * (len(heard) - 1) // max(1, count - 1)] for i in range(count)]


def _length(clip: Clip) -> int:
    return len(clip.samples)


def _samples(row: Utterance, most: float) -> np.ndarray:
    return read_clip(row, max_seconds=most).samples


def dev_manifest(config: ProveConfig, path: Path) -> Path | None:
    """The manifest on which WER is measured: the one given, else one of rows of the training manifest, written to ``path``; None where
    those have no references."""
    if config.eval_data is not None:
        return config.eval_data
    rows = [row for row in read_manifest(config.train_data, limit=10 * DEV_ROWS) if row.text and row.text.strip()]
    if not rows:
        return None
    count = min(DEV_ROWS, len(rows))
    _write([rows[i * len(rows) // count] for i in range(count)], path)
    return path


def _write(rows: Sequence[Utterance], path: Path) -> None:
    lines = []
    for row in rows:
        assert isinstance(row.audio, str), "a manifest names recordings"
        place = row.audio if Path(row.audio).is_absolute() else str(Path.cwd() / row.audio)
        fields: JsonObject = {"audio": place, "text": row.text, "id": row.id, "language": row.language,
                                  "begin_time": row.begin, "end_time": row.end}  # fmt: skip
        lines.append(json_text({name: value for name, value in fields.items() if value is not None}))
    write_text(path, "\n".join(lines) + "\n")
