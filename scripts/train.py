"""``torchrun --nproc_per_node 1 scripts/train.py …``: the same as ``arkfast train``, for launchers that start a file."""

import sys

from arkfast.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
