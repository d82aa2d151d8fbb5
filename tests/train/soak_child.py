"""``arkfast train`` on a disk that may be full: ``python soak_child.py N FLAGS…``.

From the N-th time on that a file is written, fsynced or named, the system has no more room; 0: it has room. Not a test itself.
"""

from __future__ import annotations

import errno
import itertools
import os
import sys
from pathlib import Path

from arkfast import cli, files

if __name__ == "__main__":
    first, calls = int(sys.argv[1]), itertools.count(1)

    def full(path: Path, _point: str) -> None:
        if first and next(calls) >= first:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    files.fault = full
    sys.exit(cli.main(["train", *sys.argv[2:]]))
