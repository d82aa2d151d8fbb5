"""The record of a transcription: with which model, versions and flags it ran, how fast, and which kernels did the work.

It stands beside the output as ``OUTPUT.run.json`` and is written when the output is complete.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from arkfast import __version__
from arkfast.files import is_outlet, json_text, write_text
from arkfast.infer.summary import Summary
from arkfast.records import InputError, JsonObject

VERSION = 1
PACKAGES = ("torch", "triton", "transformers", "numpy", "safetensors", "soundfile", "soxr", "av")
"""Packages whose version can change a transcript or how long it takes."""


def record_path(asked: Path | None, *, inputs: Sequence[Path], output: Path) -> Path | None:
    """Where the record goes: where it was asked for, else beside an output that is a file, else nowhere.

    Raises:
        InputError: that is an input or the output.
    """
    if asked is not None:
        if not is_outlet(asked) and asked.resolve() in {path.resolve() for path in (*inputs, output)}:
            raise InputError(f"{asked}: is an input or the output too; give --run_record a path of its own")
        return asked
    return None if is_outlet(output) else output.with_name(output.name + ".run.json")


def write_record(path: Path, *, flags: JsonObject, summary: Summary) -> None:
    """Write the record of a run.

    Args:
        path: the file.
        flags: every flag with its value.
        summary: what the run did.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(path, json_text(_record(flags, summary), indent=2) + "\n")


def _record(flags: JsonObject, summary: Summary) -> JsonObject:
    from arkfast.kernels import fallbacks, usage

    return {
        "record": VERSION,
        "model": summary.model,
        "model_commit": summary.model_commit,
        "versions": {"arkfast": __version__, "python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "flags": flags,
        "batch_size": summary.batch_size,
        "rows": summary.rows,
        "failed": summary.failed,
        "truncated": summary.truncated,
        "doubtful": summary.doubtful,
        "no_speech": summary.no_speech,
        "repeats": summary.repeats,
        "resumed": summary.resumed,
        "reasons": list(summary.reasons),
        "audio_seconds": summary.audio_seconds,
        "resumed_seconds": summary.resumed_seconds,
        "wall_seconds": summary.wall_seconds,
        "processing_seconds": summary.processing_seconds,
        "rtfx": summary.rtfx,
        "rtfx_end_to_end": summary.rtfx_end_to_end,
        "ops": {op: sorted(backends) for op, backends in usage().items()},
        "fallbacks": {op: list(reasons) for op, reasons in fallbacks().items()},
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
