"""The gated product of a feed-forward layer, in plain torch."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up, [T, I]; the first factor is rounded to the inputs' dtype before the product, as in Transformers."""
    return F.silu(gate).mul_(up)
