"""open-audio-opd's path: the same as ``arkfast evaluate``, with the rows in its order."""

import sys

from arkfast.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", "--sort", "cer_errors", *sys.argv[1:]]))
