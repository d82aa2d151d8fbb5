"""How much each position of a rollout weighs in the loss and in its mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from arkfast.records import Rollout


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Factors of positions; the default weighs all alike."""

    end: float = 1.0
    """Of the position that holds the end token of a rollout that stopped."""
    decay: float = 1.0
    """Of each position over the one before it."""

    def of(self, rollout: Rollout) -> torch.Tensor | None:
        """[N] float32 weights of the produced positions, end · decay^t at position t; None where all are 1."""
        if (self.end, self.decay) == (1.0, 1.0):
            return None
        row, position = rollout.packed_index()
        weights = torch.full_like(position, self.decay, dtype=torch.float32) ** position
        ends = rollout.stopped[row] & (position == rollout.lens[row] - 1)
        return torch.where(ends, self.end * weights, weights)
