"""``arkfast report RUN``: one HTML page of what a run's log holds.

Knows the files of a run's folder; the page itself is ``report_page``'s. It only reads, so it may be called while the run goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arkfast.config import parse
from arkfast.records import InputError
from arkfast.train.checkpoint import write_atomically

DESCRIPTION = "Write one self-contained HTML page about a training run: curves, where the time goes, transcripts before and after."


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Which run, and where the page goes."""

    run: Path
    """Folder of the run, its --output_dir; may be given without the flag's name."""
    output: Path | None = None
    """File to write; none writes report.html into the run's folder."""


@dataclass(frozen=True, kw_only=True)
class RunRecords:
    """What a run's folder says about it."""

    name: str
    """The folder's name."""
    config: dict[str, Any]
    """The run's flags."""
    steps: list[dict[str, Any]]
    """The records of its steps, in order."""
    evaluations: list[dict[str, Any]]
    """The records of its evaluations, in order."""
    samples: list[dict[str, Any]]
    """Transcripts of a few rows at each evaluation: step, id, text, pred_text; empty where the run logged none."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    words = list(argv)
    if words and not words[0].startswith("-"):
        words.insert(0, "--run")
    config = parse(ReportConfig, words, prog="arkfast report", description=DESCRIPTION)
    records = read_run(config.run)
    output = config.output or config.run / "report.html"
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}; make it or give another path")
    from arkfast.train.report_page import render

    write_atomically(output, render(records))
    print(f"{output}: {len(records.steps)} steps, {len(records.evaluations)} evaluations", file=sys.stderr)
    return 0


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
        config = json.loads((folder / "run.json").read_text(encoding="utf-8"))["config"]
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
    )


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file; its last line may be half written, by a run that goes on or was killed."""
    *lines, unfinished = path.read_text(encoding="utf-8").split("\n")
    if unfinished:
        lines.append(unfinished)
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if unfinished and number == len(lines):
                break
            raise InputError(f"{path}:{number}: not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise InputError(f"{path}:{number}: expected an object, got {type(record).__name__}")
        records.append(record)
    return records
