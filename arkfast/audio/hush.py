"""Notes that a native decoder writes straight to the process's standard error, kept off it.

libsndfile decodes MP3 with libmpg123, which reports each oddity of a file there ("Note: Trying to resync..."), without the file's name and
without a way to switch it off. What is wrong with a recording is said by this package, with its name.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

NOTE = re.compile(rb"(Note|Warning|Error|ERROR): |\[[^\]]*libmpg123[^\]]*\]|\[[^\]]*\.c:[^\]]*\] (error|warning|Error|Warning)")
"""How the decoder's lines begin."""
_STANDARD_ERROR = 2
_one_at_a_time = threading.Lock()


@contextmanager
def hushed() -> Iterator[None]:
    """Hold back standard error for the block, then pass on all lines but the decoder's: what other threads wrote meanwhile is only late."""
    with _one_at_a_time:
        try:
            screen = os.dup(_STANDARD_ERROR)
        except OSError:  # there is none
            yield
            return
        try:
            with tempfile.TemporaryFile() as held:
                with suppress(OSError, ValueError, AttributeError):
                    sys.stderr.flush()
                os.dup2(held.fileno(), _STANDARD_ERROR)
                try:
                    yield
                finally:
                    os.dup2(screen, _STANDARD_ERROR)
                    held.seek(0)
                    kept = b"".join(line for line in held.read().splitlines(keepends=True) if not NOTE.match(line))
                    if kept:
                        with suppress(OSError):
                            os.write(screen, kept)
        finally:
            os.close(screen)
