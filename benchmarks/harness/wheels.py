"""Packages that a machine without a network lacks, from wheels that came with the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

from harness.results import version

VARIABLE, MOST = "ARKFAST_WHEELS", 64 << 20
"""The variable that names the folder, and the bytes that its wheels may have in all."""


class WheelsError(ValueError):
    """The folder of wheels cannot be used."""


def lacking(folder: Path) -> list[Path]:
    """The wheels of packages that are not installed here.

    Raises:
        WheelsError: the folder is none, or its wheels are larger than what may travel.
    """
    if not folder.is_dir():
        raise WheelsError(f"{VARIABLE}={folder}: not a folder; give one with wheels, or unset the variable")
    wheels = sorted(folder.glob("*.whl"))
    if (size := sum(wheel.stat().st_size for wheel in wheels)) > MOST:
        raise WheelsError(f"{VARIABLE}={folder}: its wheels have {size >> 20} MiB; at most {MOST >> 20} may travel, so leave some out")
    return [wheel for wheel in wheels if version(re.sub(r"[-_.]+", "-", wheel.name.split("-")[0])) is None]


@contextmanager
def at_hand(environment: MutableMapping[str, str] = os.environ) -> Iterator[list[str]]:
    """The wheels that are needed, unpacked by pip into a folder of their own which every process that is started finds; their names.

    A wheel that this Python cannot take is left out, with a word on standard error. Nothing is installed for good.
    """
    names: list[str] = []
    folder = environment.get(VARIABLE)
    with tempfile.TemporaryDirectory() as target:
        for wheel in lacking(Path(folder)) if folder else []:
            command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", target, str(wheel)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{wheel.name} is left out: {(done.stderr.strip().splitlines() or ['pip failed'])[0]}", file=sys.stderr)
            else:
                names.append(wheel.name)
        before = environment.get("PYTHONPATH")
        if names:
            environment["PYTHONPATH"] = os.pathsep.join([*([before] if before else []), target])
        try:
            yield names
        finally:
            if before is None:
                environment.pop("PYTHONPATH", None)
            else:
                environment["PYTHONPATH"] = before
