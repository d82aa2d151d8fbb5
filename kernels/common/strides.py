"""Memory layouts that kernels read: any stride between rows, elements of a row next to each other."""

from __future__ import annotations

import torch


def unit_rows(x: torch.Tensor) -> torch.Tensor:
    """``x`` itself where the elements of its last axis are neighbours in memory, else a contiguous copy."""
    return x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()


def block_of(width: int, *, least: int = 16, most: int = 1 << 20) -> int:
    """The smallest power of two ≥ ``width`` within [least, most]: the lengths that Triton's blocks can have."""
    return min(most, max(least, 1 << max(0, width - 1).bit_length()))
