"""Numbers on their way from the device to the host. They are read a step later, when they have long arrived."""

from __future__ import annotations

import torch


class Readback:
    """Starts a copy and waits for it only when the numbers are asked for.

    Args:
        numbers: [n], on any device; the copy is of their values now.
    """

    def __init__(self, numbers: torch.Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if numbers.is_cuda:
            # Only a copy into pinned memory leaves the host free to go on.
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True).copy_(numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(numbers.device))
        else:
            self._numbers = numbers.clone()

    def tolist(self) -> list[float]:
        """The numbers; waits for what the device was given up to their copy, and for nothing after it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._numbers.tolist()
