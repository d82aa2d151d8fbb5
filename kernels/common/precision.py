"""The dtype in which ops compute: float32, or float64 where an input is float64."""

from __future__ import annotations

import torch


def wide_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """float64 if any tensor is float64, else float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def without_autocast(x: torch.Tensor) -> torch.autocast:
    """A context in which products keep the dtype of their operands: under a caller's autocast the wide sums would silently become bf16."""
    return torch.autocast(device_type=x.device.type, enabled=False)
