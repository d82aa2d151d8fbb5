"""Decoding before whatever else the device has been given.

A decode step is short and the next one waits for it, while the teacher's passes that run beside it are long and would hold it up. On a
stream of high priority the step's blocks are the next to be placed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

HIGH = -1
"""The priority of such a stream; others have 0."""


class Ahead:
    """A stream of high priority for what is queued inside ``first``; on a CPU everything runs in order anyway.

    What is made there may be used by what is queued afterwards on the stream that was current: ``first`` waits for it at its beginning, so
    that memory which has been given back is not written again before it has been read.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device, priority=HIGH) if device.type == "cuda" else None

    @contextmanager
    def first(self) -> Iterator[None]:
        """Everything that is queued inside goes after what the current stream was given and before what it is given next."""
        if self._stream is None:
            yield
            return
        here = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(here)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            here.wait_stream(self._stream)
