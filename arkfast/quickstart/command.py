"""``arkfast quickstart``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from arkfast.command_line import parse
from arkfast.quickstart.config import QuickstartConfig

DESCRIPTION = "Synthesise speech, train a teacher and a student, and lower the student's word error rate by on-policy distillation."


def main(argv: Sequence[str]) -> int:
    """Run the command; returns 0 only when OPD's dev WER is below both the base student's and the more-SFT arm's."""
    config = parse(QuickstartConfig, argv, prog="arkfast quickstart", description=DESCRIPTION)
    from transformers.utils import logging

    from arkfast.quickstart.run import ArmFailed, Quickstart

    logging.disable_progress_bar()  # six models are loaded in a second each
    try:
        return 0 if Quickstart(config).run() else 1
    except ArmFailed as error:
        print(f"arkfast quickstart: error: {error}", file=sys.stderr)
        return 1
