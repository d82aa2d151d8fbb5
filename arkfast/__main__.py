"""``python -m arkfast``: the ``arkfast`` command, for an interpreter whose scripts are not on the path."""

import sys

from arkfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
