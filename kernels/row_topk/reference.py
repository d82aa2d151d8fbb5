"""Top-k of rows in the order "larger value first, then lower id", in plain torch from that definition.

Each column of a buffer of logits stands for an id. Letters: n rows, V columns, g gathered columns.
"""

from __future__ import annotations

import torch

from arkfast.kernels.common.precision import wide_dtype

NEG_INF = float("-inf")
MAX_ID = 0x7FFFFFFF


def blocked_columns(width: int, blocked: torch.Tensor | None, column_ids: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    """[V] bool, True where a column may not be chosen; None when all may. Blocked ids that no column stands for have no effect."""
    if column_ids is not None:
        dropped = column_ids < 0
        if blocked is None or blocked.numel() == 0:
            return dropped
        # Not torch.isin: on a GPU it looks for unique elements, whose number the host waits for.
        wanted, found = blocked.long().sort().values, column_ids.long()
        return dropped | (wanted[torch.searchsorted(wanted, found).clamp_max(wanted.numel() - 1)] == found)
    if blocked is None:
        return None
    # One slot past the end takes the ids outside [0, V): an index error would need the device's answer.
    inside = torch.where((blocked >= 0) & (blocked < width), blocked, width).long()
    return torch.zeros(width + 1, dtype=torch.bool, device=device).index_fill_(0, inside, True)[:width]


def clean(logits: torch.Tensor, dead: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The values that take part: dead columns (``dead`` [V], or [n, V] for each row) and NaN are −inf, −0 is +0.

    Returns:
        (x [n, V] float32 or float64, has_nan [n] bool, has_inf [n] bool); the flags look at columns that are not dead.
    """
    x = logits.to(wide_dtype(logits))
    if dead is not None:
        x = x.masked_fill(dead, NEG_INF)
    # A maximum is NaN when the row holds one, which is much cheaper than a mask of the row.
    has_nan = x.amax(1).isnan()
    x = torch.nan_to_num(x, nan=NEG_INF, posinf=float("inf"), neginf=NEG_INF) + 0.0
    return x, has_nan, x.amax(1) == float("inf")


def select(x: torch.Tensor, k: int, column_ids: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The k first entries of each row in the order (value down, id up); −inf is never an entry.

    Args:
        x: [n, V] float32 or float64 without NaN or −0.
        k: entries wanted; may exceed V.
        column_ids: [V] the id of each column, or None for the column's number.

    Returns:
        (values [n, k], ids [n, k] int32), with −inf and −1 past the last entry.
    """
    have = min(k, x.shape[1])
    ids = torch.arange(x.shape[1], device=x.device) if column_ids is None else column_ids.long()
    if x.dtype == torch.float32:
        # One int64 per entry holds the whole order: a float's bits, with the lower 31 flipped where it is negative, compare as integers do,
        # and MAX_ID − id below them puts the lower id first. The keys of a row differ, so topk has no ties to break.
        bits = x.view(torch.int32)
        ordered = bits ^ ((bits >> 31) & MAX_ID)
        keys = torch.add(MAX_ID - ids, ordered.long(), alpha=1 << 32).topk(have, dim=1).values
        ordered = (keys >> 32).to(torch.int32)
        values = (ordered ^ ((ordered >> 31) & MAX_ID)).view(torch.float32)
        chosen = MAX_ID - (keys & MAX_ID)
    else:
        if column_ids is not None:
            ids, order = ids.sort(stable=True)
            x = x[:, order]
        values, position = x.sort(dim=1, descending=True, stable=True)
        values, chosen = values[:, :have], ids[position[:, :have]]
    chosen = torch.where(values == NEG_INF, -1, chosen).to(torch.int32)
    if have < k:
        values = torch.cat([values, values.new_full((x.shape[0], k - have), NEG_INF)], dim=1)
        chosen = torch.cat([chosen, chosen.new_full((x.shape[0], k - have), -1)], dim=1)
    return values, chosen


def take_columns(x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """x [n, V] at columns [n, g]: values [n, g], −inf where a column is outside [0, V)."""
    if x.shape[1] == 0:
        return x.new_full(columns.shape, NEG_INF)
    inside = (columns >= 0) & (columns < x.shape[1])
    return x.gather(1, torch.where(inside, columns, 0).long()).masked_fill(~inside, NEG_INF)
