"""The pieces of a linear layer's top-k, in plain torch: looking up output ids, exact scores of the chosen ones.

Letters: n rows of a chunk, V columns (rows of the weight), k ids a row. A column's output id is its number, or what ``vocab_map`` says.
"""

from __future__ import annotations

import torch

from arkfast.kernels.gather_linear import reference as gather_reference

NEG_INF = float("-inf")


class Columns:
    """Output id → column, without knowing the largest output id and without asking the device for it."""

    def __init__(self, vocab_map: torch.Tensor | None) -> None:
        self.sorted_ids: torch.Tensor | None = None
        self.order: torch.Tensor | None = None
        if vocab_map is not None:
            self.sorted_ids, self.order = vocab_map.long().sort(stable=True)

    def places(self, ids: torch.Tensor) -> torch.Tensor:
        """Where output ids (int64 out, shape of ``ids``) stand when columns are in the order of theirs; −1 for an id without a column."""
        ids = ids.long()
        if self.sorted_ids is None:
            return ids
        place = torch.searchsorted(self.sorted_ids, ids).clamp_max(self.sorted_ids.numel() - 1)
        return torch.where((self.sorted_ids[place] == ids) & (ids >= 0), place, -1)

    def position_ranges(self, ranges: torch.Tensor | None) -> torch.Tensor | None:
        """Ranges of output ids [T, R, 2] as ranges of the places that those ids have when columns are in the order of theirs, int32."""
        if ranges is None or self.sorted_ids is None:
            return ranges
        return torch.searchsorted(self.sorted_ids, ranges.long(), out_int32=True)

    def of(self, ids: torch.Tensor) -> torch.Tensor:
        """Columns (int64, shape of ``ids``) that stand for output ids; −1 where none does."""
        places = self.places(ids)
        return places if self.order is None else torch.where(places < 0, -1, self.order[places.clamp_min(0)])


def exact_scores(hidden: torch.Tensor, weight: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """hidden [n, H] · weight [V, H] at columns [n, k], products and sums in float32; −inf where a column is outside [0, V)."""
    outside = (columns < 0) | (columns >= weight.shape[0])
    return gather_reference.scores(hidden, weight, columns.masked_fill(outside, -1)).masked_fill_(outside, NEG_INF)


def order_again(values: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of (values, ids) [n, k] in the order (value down, id up), −1 last."""
    by_id = ids.sort(dim=1, stable=True).indices
    values, ids = values.gather(1, by_id), ids.gather(1, by_id)
    values, by_value = values.sort(dim=1, descending=True, stable=True)
    ids = ids.gather(1, by_value)
    return values, ids
