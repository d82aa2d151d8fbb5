"""``arkfast train``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from arkfast.command_line import parse
from arkfast.files import json_text, write_text
from arkfast.records import InputError
from arkfast.train.config import TrainConfig
from arkfast.train.originals import WITHOUT_EFFECT, without_original_flags

DESCRIPTION = (
    "Train an ARK-ASR model: on-policy distillation (opd), teacher data (td) or supervised fine-tuning (sft); or a head beside it that "
    "tells when words were said (ctc_head)."
)

SMALLER = "Lower --per_device_train_batch_size or --batch_seconds, give --activation_checkpointing True, or shard over more processes."


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    return run(argv, prog="arkfast train", description=DESCRIPTION)


def run(argv: Sequence[str], *, prog: str, description: str) -> int:
    """Run the command under another command's name; returns the exit code."""
    flags, notes = without_original_flags(argv)
    config = parse(TrainConfig, flags, prog=prog, description=description, without_effect=WITHOUT_EFFECT)
    if os.environ.get("RANK", "0") == "0":
        for note in notes:
            print(f"{prog}: {note}", file=sys.stderr)
    import torch

    from arkfast.data.pool import WorkersBroken
    from arkfast.models.bars import without_loading_bars
    from arkfast.train.ctc_head import CtcHeadRun
    from arkfast.train.parallel import let_rank_0_end_first
    from arkfast.train.stop import Interrupted
    from arkfast.train.trainer import Trainer, TrainingStopped

    without_loading_bars()
    try:
        (CtcHeadRun if config.stage == "ctc_head" else Trainer)(config).run()
    except InputError as error:
        text = "; ".join(line.strip() for line in str(error).splitlines())  # one line, whatever it lists
        tell_torchrun(f"{prog}: error: {text}")
        raise InputError(text) from error
    except TrainingStopped as error:
        text = str(error)
        if os.environ.get("RANK", "0") != "0":  # all ranks stop for the same reason
            let_rank_0_end_first()
            return 1
    except torch.OutOfMemoryError as error:
        text = f"out of memory: {str(error).splitlines()[0]} {SMALLER}"
    except WorkersBroken as error:
        text = " ".join(str(error).split())
    except Interrupted as reason:
        print(f"{prog}: {reason}", file=sys.stderr)
        return reason.exit_code
    else:
        return 0
    print(f"{prog}: error: {text}", file=sys.stderr)
    tell_torchrun(f"{prog}: error: {text}")
    return 1


def tell_torchrun(text: str) -> None:
    """Leave the reason where torchrun looks for it, so that its own last lines end in the cause instead of in an advice."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        with suppress(InputError):  # without it torchrun says only that this process failed
            details = {"py_callstack": text, "timestamp": str(int(time.time()))}  # torchrun shows the first
            write_text(Path(path), json_text({"message": {"message": text, "extraInfo": details}}))
