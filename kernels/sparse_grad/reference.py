"""Segment sums of scaled hidden rows, in plain torch: sort the entries by id, then add each id's entries in the order of their positions.

An entry is (id, position, factor). Letters: T positions, U ids a position, E = T·U entries, H features, V weight rows.
"""

from __future__ import annotations

import torch

from arkfast.kernels.common.chunks import rows_within, spans

CHUNK_ELEMENTS = 1 << 20
"""Elements of the scaled hidden rows that exist at once (4 MB in float32)."""


def accumulate(out: torch.Tensor, grad: torch.Tensor, ids: torch.Tensor, hidden: torch.Tensor, *, ordered: bool = True) -> None:
    """out[v] += Σ_{t,u: ids[t,u] = v} grad[t,u] · hidden[t], in place; entries with a negative id or a factor of 0 are left out.

    Args:
        out: [V, H] float32 or float64.
        grad, ids: [T, U].
        hidden: [T, H] in out's dtype.
        ordered: sort the entries first; otherwise they are added as they come, on CUDA in no fixed order.
    """
    ids, order = ids.flatten().long(), torch.arange(ids.numel(), device=ids.device)
    if ordered:
        # The sort is stable, so an id's entries stay in the order of t, then u: the sum's order is a function of the ids alone.
        ids, order = ids.sort(stable=True)
    factor = grad.flatten()[order].to(out.dtype)
    position = order // max(1, grad.shape[1])
    empty = ((ids < 0) | (factor == 0))[:, None]
    ids = ids.clamp_min(0)
    for span in spans(ids.numel(), rows_within(CHUNK_ELEMENTS, hidden.shape[1], most=1 << 20)):
        # Mask, don't multiply: an unused position may hold NaN, and NaN · 0 is NaN.
        rows = (hidden[position[span]] * factor[span, None]).masked_fill_(empty[span], 0.0)
        if out.is_cuda and ordered:
            # index_add_ adds by atomics on CUDA; index_put_ sorts its indices first and is deterministic there.
            out.index_put_((ids[span],), rows, accumulate=True)
        else:
            out.index_add_(0, ids[span], rows)
