"""Normalising and rotating queries and keys and writing a cache, in plain torch.

Letters: T rows, Hq query heads, Hkv key-value heads, D features of a head, R cache rows, L positions of each.
"""

from __future__ import annotations

import torch

from arkfast.kernels.add_rms_norm.reference import add_norm


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [T, heads, D] turned by the angles of [T, D]: feature d and d + D/2 of a head are a pair. Each product and the sum are rounded."""
    low, high = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat((-high, low), -1) * sin[:, None]


def rotate_and_write(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor, float] | None,
) -> torch.Tensor:
    """Rotated queries [T, Hq, D]; row t of ``keys`` and ``values`` gets the rotated k and the v of row t at ``positions[t]``, in place.

    With ``norms`` (the weights [D] for queries and for keys, and what is added to the mean square) each head is normalised first.
    """
    rows, heads, size = len(q), keys.shape[1], cos.shape[1]
    q, k = q.view(rows, q.shape[1] // size, size), k.view(rows, heads, size)
    if norms is not None:
        q_norm, k_norm, eps = norms
        q, k = add_norm(q, None, q_norm, eps)[0], add_norm(k, None, k_norm, eps)[0]
    # scatter_ and not an indexed assignment, which would take a negative position for one from the end.
    place = positions.long()[:, None, None, None].expand(rows, heads, 1, size)
    keys[:rows].scatter_(2, place, rotated(k, cos, sin)[:, :, None])
    values[:rows].scatter_(2, place, v.view(rows, heads, size)[:, :, None])
    return rotated(q, cos, sin)
