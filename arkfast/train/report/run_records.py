"""What a run's folder says about it: its flags, its steps, its evaluations. It only reads, so it may be called while the run goes on."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from arkfast.files.json_input import parse_json, parse_json_object
from arkfast.records import InputError, JsonObject


@dataclass(frozen=True, kw_only=True)
class RunRecords:
    """What a run's folder says about it."""

    name: str
    """The folder's name."""
    config: JsonObject
    """The run's flags."""
    steps: list[JsonObject]
    """The records of its steps, in order."""
    evaluations: list[JsonObject]
    """The records of its evaluations, in order."""
    samples: list[JsonObject]
    """Transcripts of a few rows at each evaluation: step, id, language, text, pred_text; empty where the run logged none."""
    day: datetime.date | None = None
    """When the log was last written to."""


def read_run(folder: Path) -> RunRecords:
    """Everything the page needs of a run's folder.

    Raises:
        InputError: the folder holds no run, or a file of it cannot be read; the message names file and line.
    """
    log = folder / "metrics.jsonl"
    for path in (folder / "run.json", log):
        if not path.is_file():
            raise InputError(f"{folder}: not a run's folder ({path.name} is missing); give the --output_dir of a training run")
    try:
        config = parse_json_object((folder / "run.json").read_bytes())["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / 'run.json'}: not the description of a run ({error!r})") from error
    records = _read_lines(log)
    for number, record in enumerate(records, 1):
        if not isinstance(record.get("step"), int):
            raise InputError(f"{log}:{number}: a record without its step")
    evaluations = [record for record in records if "eval_wer" in record]
    return RunRecords(
        name=folder.resolve().name,
        config=config,
        steps=[record for record in records if "loss" in record],
        evaluations=evaluations,
        samples=[{"step": record["step"], **sample} for record in evaluations for sample in record.get("samples", ())],
        day=datetime.date.fromtimestamp(log.stat().st_mtime),
    )


def _read_lines(path: Path) -> list[JsonObject]:
    """The records of a JSONL file; its last line may be half written, by a run that goes on or was killed."""
    *lines, unfinished = path.read_text(encoding="utf-8").split("\n")
    if unfinished:
        lines.append(unfinished)
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = parse_json(line)
        except ValueError as error:
            if unfinished and number == len(lines):
                break
            raise InputError(f"{path}:{number}: not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise InputError(f"{path}:{number}: expected an object, got {type(record).__name__}")
        records.append(record)
    return records
