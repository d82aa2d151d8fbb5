"""``arkfast calibrate``: ``arkfast train`` that ends after its look at the first batches, with everything it found."""

from __future__ import annotations

from collections.abc import Sequence

from arkfast.train.command import run

DESCRIPTION = "Look at what a training run begins with and what it will cost, and end: the flags are those of arkfast train."


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code: 0 go, 1 no-go."""
    return run([*argv, "--calibrate_only", "True"], prog="arkfast calibrate", description=DESCRIPTION)
