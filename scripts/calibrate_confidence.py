"""Fit a calibration of word confidences: ``python scripts/calibrate_confidence.py TRANSCRIPTS.jsonl calibration.json``.

The transcripts are those of ``arkfast transcribe --confidence`` for a manifest with references.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from arkfast.infer.calibration import calibrate
from arkfast.infer.jsonl import read_rows
from arkfast.records import InputError


def main() -> int:
    """0, or 2 where the rows allow no calibration."""
    parser = argparse.ArgumentParser(description="Fit a calibration of word confidences.")
    parser.add_argument("transcripts", type=Path, help="output of arkfast transcribe --confidence")
    parser.add_argument("output", type=Path, help="the file for --calibration")
    given = parser.parse_args()
    try:
        print(calibrate(list(read_rows(given.transcripts)), given.output))
    except InputError as error:
        print(f"calibrate_confidence.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
