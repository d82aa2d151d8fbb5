"""The residual sum and its normalised rows, in plain torch.

Roundings stand where Transformers' decoder layers and ``Qwen2RMSNorm`` have them, so the bits are theirs.
"""

from __future__ import annotations

import torch

from arkfast.kernels.common.precision import wide_dtype


def add_norm(x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight · total / √(mean(total²) + eps), total) with total = x + residual, both [T, H] in x's dtype."""
    total = x if residual is None else x + residual
    wide = total.to(wide_dtype(x))
    rows = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * rows.to(x.dtype), total
