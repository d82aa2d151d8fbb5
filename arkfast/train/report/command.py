"""``arkfast report RUN``: one HTML page of what a run's log holds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from arkfast import command_line
from arkfast.command_line import parse
from arkfast.files import write_text
from arkfast.records import InputError
from arkfast.train.report.page import page
from arkfast.train.report.run_records import read_run

DESCRIPTION = "Write one self-contained HTML page about a training run: curves, where the time goes, transcripts before and after."


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Which run, and where the page goes."""

    headings: ClassVar[dict[str, str]] = {"run": command_line.FIRST}

    run: Path
    """Folder of the run, its --output_dir."""
    output: Path | None = None
    """File to write; none writes report.html into the run's folder."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    config = parse(ReportConfig, argv, prog="arkfast report", description=DESCRIPTION, position="run")
    records = read_run(config.run)
    output = config.output or config.run / "report.html"
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}; make it or give another path")
    write_text(output, page(records))
    print(f"{output}: {len(records.steps)} steps, {len(records.evaluations)} evaluations", file=sys.stderr)
    return 0
