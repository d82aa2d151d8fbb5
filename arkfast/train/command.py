"""``arkfast train``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from arkfast.command_line import parse
from arkfast.records import InputError
from arkfast.train.config import TrainConfig
from arkfast.train.originals import without_original_flags

DESCRIPTION = "Train an ARK-ASR model: on-policy distillation (opd), teacher data (td) or supervised fine-tuning (sft)."

SMALLER = "Lower --per_device_train_batch_size or --batch_seconds, give --activation_checkpointing True, or shard over more processes."


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    return run(argv, prog="arkfast train", description=DESCRIPTION)


def run(argv: Sequence[str], *, prog: str, description: str) -> int:
    """The same under another name."""
    flags, notes = without_original_flags(argv)
    config = parse(TrainConfig, flags, prog=prog, description=description)
    if os.environ.get("RANK", "0") == "0":
        for note in notes:
            print(f"{prog}: {note}", file=sys.stderr)
    import torch

    from arkfast.data.pool import WorkersBroken
    from arkfast.models.bars import without_loading_bars
    from arkfast.train.stop import EXIT_CODE
    from arkfast.train.trainer import Interrupted, Trainer, TrainingStopped

    without_loading_bars()
    try:
        Trainer(config).run()
    except InputError as error:
        raise InputError("; ".join(line.strip() for line in str(error).splitlines())) from error  # one line, whatever it lists
    except TrainingStopped as error:
        if os.environ.get("RANK", "0") == "0":  # all ranks stop for the same reason
            print(f"{prog}: error: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        print(f"{prog}: error: out of memory: {str(error).splitlines()[0]} {SMALLER}", file=sys.stderr)
        return 1
    except WorkersBroken as error:
        print(f"{prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except Interrupted as reason:
        print(f"{prog}: {reason}", file=sys.stderr)
        return EXIT_CODE
    return 0
