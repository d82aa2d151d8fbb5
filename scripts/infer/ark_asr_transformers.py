"""open-audio-opd's path: the same as ``arkfast transcribe``."""

import sys

from arkfast.cli import main

if __name__ == "__main__":
    sys.exit(main(["transcribe", *sys.argv[1:]]))
