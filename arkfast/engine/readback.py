"""Values on their way from the device to the host. They are read later, when they have long arrived."""

from __future__ import annotations

import torch


class Readback:
    """Starts a copy and waits for it only when the values are asked for.

    Args:
        values: on any device; the copy is of what they are now.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda:
            # Only a copy into pinned memory leaves the host free to go on. PyTorch gives such memory out again when its copy is done, so
            # that one copy is read while the next is under way.
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(values.device))
        else:
            self._values = values.clone()

    def host(self) -> torch.Tensor:
        """The values; waits for what the device was given up to their copy, and for nothing after it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values

    def tolist(self) -> list[float]:
        """The numbers of one axis."""
        return self.host().tolist()
