"""The ``arkfast`` command, whose first word says which of its commands runs.

A command's module loads only when it is asked for, so ``--help`` is quick and a missing extra concerns its own command alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from arkfast import __version__
from arkfast.files import streams
from arkfast.records import InputError

COMMANDS = {
    "train": ("arkfast.train.command", "train a model: OPD, teacher data or supervised"),
    "calibrate": ("arkfast.train.calibrate", "look at a run before it trains: what it begins with, what it will cost, go or no-go"),
    "verify": ("arkfast.train.verify", "check a checkpoint without data: weights, tokenizer, prompt, and whether a teacher fits"),
    "report": ("arkfast.train.report.command", "one HTML page about a training run: curves, time, transcripts"),
    "export": ("arkfast.train.checkpoints.export_command", "the model of a training checkpoint, in any precision"),
    "transcribe": ("arkfast.infer.command", "recordings or a manifest in, JSONL, text or captions out"),
    "serve": ("arkfast.serve.command", "an OpenAI-compatible transcription service"),
    "evaluate": ("arkfast.evaluate.command", "WER and CER of transcripts, with confidence intervals"),
    "manifest": ("arkfast.manifest.command", "check a data set, or clean it: bad rows named, durations filled in"),
    "prove": ("arkfast.prove.command", "compare with Transformers on your own checkpoints, then a few steps: one pass or fail report"),
    "quickstart": ("arkfast.quickstart.command", "the whole job, small and real, on a CPU in minutes"),
    "doctor": ("arkfast.doctor", "what is installed, what runs, and what is missing for each entry point"),
}


def _usage() -> str:
    lines = [f"arkfast {__version__}: on-policy distillation and inference for compact speech-recognition models", ""]
    lines += ["usage: arkfast COMMAND [--flag value ...]", ""]
    lines += [f"  {name:<11} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join([*lines, "", "arkfast COMMAND --help lists a command's flags."])


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``arkfast``; returns the exit code: 0 done, 1 failed, 2 wrong input, 130 interrupted, 141 when nobody reads its output."""
    words = list(sys.argv[1:] if argv is None else argv)
    streams.prepare(needed=words[:1] == ["manifest"])
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if words[0] in ("-V", "--version"):
        print(__version__)
        return 0
    if words[0] not in COMMANDS:
        print(f"arkfast: error: unknown command '{words[0]}'; one of: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        code = int(import_module(COMMANDS[words[0]][0]).main(words[1:]))
        if sys.stdout is not None:
            sys.stdout.flush()  # what is still in the buffer belongs to the work too
        return code
    except InputError as error:
        print(f"arkfast {words[0]}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # of an output that is standard output
        return streams.PIPE_CLOSED
    except KeyboardInterrupt:
        print(f"arkfast {words[0]}: interrupted", file=sys.stderr)
        return 130
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "arkfast":
            raise
        what = str(error)
        if isinstance(error, ModuleNotFoundError) and error.name:
            what = f"package '{error.name}' is not installed; arkfast doctor names the extra that brings it"
        print(f"arkfast {words[0]}: error: {what}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
