"""Dot products of hidden rows with gathered weight rows, and the hidden gradient, in plain torch.

Letters: T positions, H features, V weight rows, U ids a position. Gathered rows [n, U, H] exist for a few positions at a time.
"""

from __future__ import annotations

import torch

from arkfast.kernels.common.chunks import rows_within, spans
from arkfast.kernels.common.precision import wide_dtype

CHUNK_ELEMENTS = 1 << 19
"""Gathered weight elements that exist at once: 2 MB in float32 stay in a CPU's cache between the gather and the product."""


def _gathered(weight: torch.Tensor, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """weight [V, H] at ids [n, U] (negative reads row 0) → [n, U, H] in ``dtype``."""
    return weight.index_select(0, ids.clamp_min(0).flatten()).view(*ids.shape, weight.shape[1]).to(dtype)


def _spans(hidden: torch.Tensor, ids: torch.Tensor) -> list[slice]:
    return list(spans(ids.shape[0], rows_within(CHUNK_ELEMENTS, ids.shape[1] * hidden.shape[1], most=1 << 16)))


def scores(hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """s[t, u] = weight[ids[t, u]] · hidden[t], 0 where the id is negative: [T, U] in float32 or wider."""
    dtype = wide_dtype(hidden, weight)
    # Product and sum, not bmm: a matrix–vector product per position is several times slower in a CPU's batched GEMM.
    parts = [(_gathered(weight, ids[s], dtype) * hidden[s, None].to(dtype)).sum(-1) for s in _spans(hidden, ids)]
    return torch.cat(parts).masked_fill_(ids < 0, 0.0)


def hidden_grad(grad: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """dh[t] = Σ_u grad[t, u] · weight[ids[t, u]] over ids ≥ 0: [T, H] in grad's dtype."""
    grad = grad.masked_fill(ids < 0, 0.0)
    parts = [torch.bmm(grad[s, None], _gathered(weight, ids[s], grad.dtype)).squeeze(1) for s in _spans(hidden, ids)]
    return torch.cat(parts)
