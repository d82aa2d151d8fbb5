"""``arkfast train``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from arkfast.config import parse
from arkfast.train.config import TrainConfig

DESCRIPTION = "Train an ARK-ASR model: on-policy distillation (opd), teacher data (td) or supervised fine-tuning (sft)."


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    config = parse(TrainConfig, argv, prog="arkfast train", description=DESCRIPTION)
    from transformers.utils import logging

    from arkfast.train.trainer import Trainer, TrainingStopped

    logging.disable_progress_bar()  # the run has a bar of its own
    try:
        Trainer(config).run()
    except TrainingStopped as error:
        print(f"arkfast train: error: {error}", file=sys.stderr)
        return 1
    return 0
