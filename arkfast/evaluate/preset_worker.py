"""A process that evaluates one preset after another and loads the model once: what ``evaluate_presets`` starts for each device.

A line of standard input is a job, ``{"flags": [...], "log": path}``; what ``arkfast evaluate`` says goes into the log, and a line of
standard output is the answer, ``{"code": exit code, "last": whether this process takes no further job}``. It ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import fields
from pathlib import Path

from arkfast.evaluate.command import main as evaluate
from arkfast.infer.command import load_transcriber
from arkfast.infer.options import TranscribeOptions
from arkfast.infer.transcriber import Transcriber
from arkfast.records import InputError

_SOUND = (0, 1)  # exit codes after which the process can go on: everything was scored, or rows failed


class LoadedOnce:
    """``load_transcriber``, which loads again only where another model or other flags are asked for."""

    def __init__(self) -> None:
        self._asked: tuple[Path, dict[str, object]] | None = None
        self._transcriber: Transcriber | None = None

    def __call__(self, model_path: Path, options: TranscribeOptions) -> Transcriber:
        """See ``arkfast.infer.command.Load``."""
        asked = (model_path, {field.name: getattr(options, field.name) for field in fields(TranscribeOptions)})
        if self._transcriber is None or asked != self._asked:
            self._transcriber = None  # its memory goes before the next one takes some
            self._transcriber, self._asked = load_transcriber(model_path, options), asked
        return self._transcriber


def main() -> int:
    """``python -m arkfast.evaluate.preset_worker``: 0 when the input ends, the last job's code when that job ended the process."""
    # other numbers than the standard ones, so that nothing that runs in a job reads or writes them
    jobs, replies = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    load = LoadedOnce()
    for line in jobs:
        job = json.loads(line)
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for standard in (1, 2):
            os.dup2(log, standard)
        os.close(log)
        code = _evaluated(job["flags"], load)
        sys.stdout.flush()
        sys.stderr.flush()
        last = code not in _SOUND  # a fault of the device, or a bug, may have left this process unfit for more
        replies.write(json.dumps({"code": code, "last": last}) + "\n")
        replies.flush()
        if last:
            return code
    return 0


def _evaluated(flags: list[str], load: LoadedOnce) -> int:
    """The exit code of ``arkfast evaluate``; -1 stands for what is nobody's input, with its traceback in the log."""
    try:
        return evaluate(flags, load=load)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 2
    except InputError as error:
        print(f"arkfast evaluate: error: {error}", file=sys.stderr)
        return 2
    except Exception:  # it has to be told to the process that waits for an answer, whatever it is
        traceback.print_exc()
        return -1


if __name__ == "__main__":
    sys.exit(main())
