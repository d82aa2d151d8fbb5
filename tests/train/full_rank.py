"""One of two ranks of ``arkfast train``: ``python full_rank.py RANK FULL LIMIT FLAGS…``.

On rank FULL no file can be larger than LIMIT bytes. Not a test itself.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

from arkfast import cli

if __name__ == "__main__":
    rank, full, limit = sys.argv[1:4]
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
    if rank == full:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails, as it does without room
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    sys.exit(cli.main(["train", *sys.argv[4:]]))
