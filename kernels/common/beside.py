"""A chunk's second half of work beside the next chunk's first, on a second stream of the same GPU.

A matrix product keeps the multiprocessors busy and leaves half of the memory's bandwidth; a pass over its rows does the opposite. One after
the other they take the sum of both times.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch

BUFFERS = 2
"""Chunks that are under way at once, each in a buffer of its own."""
PRIORITY = -1
"""Of the second stream. A product has its blocks queued long before the rows' are; with the priority of other streams these would wait for
the last of them."""


@functools.cache
def _stream_of(index: int) -> torch.cuda.Stream:
    """The second stream of a GPU, one for all calls: memory that is given back belongs to the stream on which it was asked for."""
    return torch.cuda.Stream(torch.device("cuda", index), priority=PRIORITY)


class Beside:
    """Orders the halves of chunks that share BUFFERS buffers, in turn; on a CPU, which has no streams, everything runs as it is written.

    Inside ``with Beside(device, on=True) as halves``, for each chunk: ``halves.claim(buffer)`` before its first half writes the buffer,
    then its second half within ``halves.second(buffer)``. At the end, after an error too, the current stream waits for all second halves.
    What they made may be used by whatever is queued on it from then on, and memory of theirs that is given back is not written before that
    has run: the next ``second`` waits for the current stream.

    Args:
        device: where the work is done; a GPU is the current one.
        on: False leaves the second stream out, as for a single chunk.
    """

    def __init__(self, device: torch.device, *, on: bool) -> None:
        self._device = device
        gpu = on and device.type == "cuda"
        self._stream = _stream_of(torch.cuda.current_device() if device.index is None else device.index) if gpu else None
        self._read: dict[int, torch.cuda.Event] = {}

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def claim(self, buffer: int) -> None:
        """What is queued next on the current stream goes after the second half that last read ``buffer``."""
        if self._stream is not None and buffer in self._read:
            torch.cuda.current_stream(self._device).wait_event(self._read[buffer])

    @contextmanager
    def second(self, buffer: int) -> Iterator[None]:
        """What is queued inside goes after all that the current stream has been given, and beside what it is given next."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield
        self._read[buffer] = self._stream.record_event()
