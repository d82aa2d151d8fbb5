"""``python scripts/infer.py …``: the same as ``arkfast transcribe``, for launchers that start a file."""

import sys

from arkfast.cli import main

if __name__ == "__main__":
    sys.exit(main(["transcribe", *sys.argv[1:]]))
