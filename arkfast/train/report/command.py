"""``arkfast report RUN``: one HTML page of what a run's log holds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arkfast.command_line import parse
from arkfast.files import write_text
from arkfast.records import InputError
from arkfast.train.report.page import page
from arkfast.train.report.run_records import read_run

DESCRIPTION = "Write one self-contained HTML page about a training run: curves, where the time goes, transcripts before and after."


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Which run, and where the page goes."""

    run: Path
    """Folder of the run, its --output_dir; may be given without the flag's name."""
    output: Path | None = None
    """File to write; none writes report.html into the run's folder."""


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
    write_text(output, page(records))
    print(f"{output}: {len(records.steps)} steps, {len(records.evaluations)} evaluations", file=sys.stderr)
    return 0
