"""Attention of one query a row over the first keys of its row, in plain torch.

Letters: T rows, Hq query heads, Hkv key-value heads, G = Hq / Hkv heads of a group, D features of a head, R cache rows, L positions.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def attention(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, lens: torch.Tensor, limit: int, scale: float) -> torch.Tensor:
    """[T, Hq · D]: softmax(scale · q · keys) · values over the first ``lens[t]`` of ``limit`` positions; zeros where there is none.

    The heads of a group are rows of one product, so keys and values are not repeated. Sums are float32 or wider.
    """
    rows, heads, size = q.shape
    grouped = q.reshape(rows, keys.shape[1], heads // keys.shape[1], size)
    seen = torch.arange(limit, device=q.device) < lens[:, None]
    out = F.scaled_dot_product_attention(
        grouped, keys[:rows, :, :limit], values[:rows, :, :limit], attn_mask=seen[:, None, None], scale=scale
    ).reshape(rows, heads * size)
    # More keys than may be looked at: an answer from a part of them would look right.
    return out.masked_fill_((lens > limit)[:, None], float("nan"))
