"""Encoding and prefill beside the rows that are being decoded.

A decode step reads memory and leaves the matrix units idle, an encoder's pass is the other way round: on streams of their own both run at
once. What is begun, and when it is waited for, depends on the requests alone and never on how fast the device was, so that the same
requests are grouped alike in every run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


class Beside:
    """A stream of its own; on a CPU everything runs in order anyway, and nothing has to be waited for.

    Memory that is taken in ``work`` may be read by another stream that waits for ``done`` of it, and given back as soon as that reading is
    queued: the next ``work`` begins after an event that was recorded later (see ``moment``).

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def moment(self) -> torch.cuda.Event | None:
        """When the current stream has done what it was given so far."""
        return None if self._stream is None else _recorded(torch.cuda.current_stream(self._device))

    def done(self) -> torch.cuda.Event | None:
        """When this stream has done what it was given so far."""
        return None if self._stream is None else _recorded(self._stream)

    @contextmanager
    def work(self, *, after: Iterable[torch.cuda.Event | None], reads: Iterable[torch.Tensor | None]) -> Iterator[None]:
        """What is queued inside runs on this stream.

        Args:
            after: what it waits for: a ``moment`` since which nothing has read what was made here before, and events of what it needs.
            reads: tensors of other streams that it reads and that may be given back meanwhile.
        """
        if self._stream is None:
            yield
            return
        for event in {id(event): event for event in after if event is not None}.values():
            self._stream.wait_event(event)
        for tensor in reads:
            if tensor is not None and tensor.is_cuda:
                tensor.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            yield


def _recorded(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record(stream)
    return event


def wait_for(events: Iterable[torch.cuda.Event | None], device: torch.device) -> None:
    """Have the current stream wait for events; the host goes on."""
    for event in {id(event): event for event in events if event is not None}.values():
        torch.cuda.current_stream(device).wait_event(event)
