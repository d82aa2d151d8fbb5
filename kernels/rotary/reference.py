"""The rotation of neighbouring features, in plain torch.

Letters: T positions, D features of a head, r pairs of a head that turn.
"""

from __future__ import annotations

import torch


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [T, heads, D] with features (0, 1), (2, 3), … turned by the angles of [T, r]; features from 2r on pass unchanged.

    Each product and each sum is rounded to the inputs' dtype.
    """
    even, odd = x[..., : 2 * cos.shape[1]].unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    pairs = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    return torch.cat((pairs, x[..., 2 * cos.shape[-1] :]), dim=-1)
