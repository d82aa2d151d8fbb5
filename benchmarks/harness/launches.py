"""How much a call hands to the device: kernels on a GPU, dispatched operations on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Dispatched(TorchDispatchMode):
    """Counts what reaches the dispatcher's end, views included."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.count += func.namespace == "aten"
        return func(*args, **(kwargs or {}))


def launches(call: Callable[[], object], device: torch.device) -> dict[str, int | str | None]:
    """Columns of a row: how many launches a call makes and what they are.

    On a GPU the profiler counts kernels, copies and fills that ran, those inside a CUDA graph one by one; a CPU launches nothing, and what
    it dispatches stands in their place under its own name. None where the profiler sees nothing.
    """
    call()
    if device.type != "cuda":
        with _Dispatched() as seen:
            call()
        return {"launches": seen.count, "launches_are": "dispatched aten operations"}
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize(device)
    ran = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return {"launches": len(ran) or None, "launches_are": "kernels, copies and fills"}
