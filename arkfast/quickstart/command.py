"""``arkfast quickstart``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from arkfast.command_line import parse
from arkfast.installation import install_hint
from arkfast.quickstart.config import QuickstartConfig
from arkfast.records import InputError

NEEDED = {"espeakng_loader": "espeakng-loader", "matplotlib": "matplotlib", "soundfile": "soundfile", "soxr": "soxr", "jiwer": "jiwer",
          "jinja2": "jinja2"}  # fmt: skip
"""What the quickstart imports at some time, the last of it when everything is trained → the package that brings it."""
DESCRIPTION = "Synthesise speech, train a teacher and a student, and lower the student's word error rate by on-policy distillation."


def check_packages() -> None:
    """Find out what is missing before anything is trained.

    Raises:
        InputError: packages are missing.
    """
    missing = []
    for module, package in NEEDED.items():
        try:
            import_module(module)
        except ImportError:
            missing.append(package)
    if missing:
        raise InputError(f"packages are missing that the quickstart needs: {', '.join(missing)}; {install_hint('asr', 'quickstart')}")


def main(argv: Sequence[str]) -> int:
    """Run the command; returns 0 only when OPD's dev WER is below both the base student's and the more-SFT arm's."""
    config = parse(QuickstartConfig, argv, prog="arkfast quickstart", description=DESCRIPTION)
    check_packages()
    from arkfast.models.bars import without_loading_bars
    from arkfast.quickstart.run import ArmFailed, Quickstart

    without_loading_bars()
    try:
        return 0 if Quickstart(config).run() else 1
    except ArmFailed as error:
        print(f"arkfast quickstart: error: {error}", file=sys.stderr)
        return 1
