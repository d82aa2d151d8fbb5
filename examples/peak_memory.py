"""What a call needs at its peak, for the examples: bytes on a GPU; the largest tensor where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that an operation returned. Memory that an operation uses inside is not seen."""

    def __init__(self, but: tuple[int, ...]) -> None:
        super().__init__()
        self.but = but
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and tuple(x.shape) != self.but:
                self.bytes = max(self.bytes, x.numel() * x.element_size())
        return result


def report(name: str, call: Callable[[], torch.Tensor], head: torch.Tensor) -> None:
    """Runs ``call``, which gives a loss, and its backward; prints the loss and the memory.

    The dense gradient of ``head``, which every way of training it makes, is left out on a CPU and is part of the peak on a GPU.
    """
    if head.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = call()
        loss.backward()
        torch.cuda.synchronize()
        size, what = torch.cuda.max_memory_allocated() - before, "peak GPU memory beyond the inputs"
    else:
        # The head and what has its shape exist in any case.
        with LargestTensor(but=tuple(head.shape)) as largest:
            loss = call()
            loss.backward()
        size, what = largest.bytes, "largest tensor made (on a CPU; not a GPU's peak)"
    head.grad = None
    print(f"{name:<28} loss {loss.item():8.4f}   {what}: {size / 2**20:.1f} MiB")
