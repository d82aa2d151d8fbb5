"""The most probable way in which known units stand in CTC's scores, for a batch of clips at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from arkfast.align.units import BLANK


class Paths(NamedTuple):
    """When each unit is spoken. Rows that are not ``possible``, and what lies behind a row's units, hold nothing of meaning."""

    first: Tensor
    """[B, U] int64: a unit's first step."""
    last: Tensor
    """[B, U] int64: its last step, before the next unit's first."""
    possible: Tensor
    """[B] bool: whether the steps are enough for the units, with one between two equal ones."""


def forced_alignment(scores: Tensor, steps: Tensor, units: Tensor, counts: Tensor) -> Paths:
    """The Viterbi path through CTC's states (Graves et al., "Connectionist Temporal Classification", 2006) of given units.

    Between units, before the first and behind the last stands the blank, which may be left out but between two equal units. A state has
    as many steps as its path stays in it. The host loops over steps alone, and nothing is fetched from the device.

    Args:
        scores: [B, T, V] scores of each unit at each step, usually log-probabilities.
        steps: [B] int64 steps of each clip, at most T; the others are not read.
        units: [B, U] int64 ids, padded on the right with any id below V.
        counts: [B] int64 units of each clip, at most U.

    Returns:
        The paths, on the device of ``scores``.
    """
    batch, longest, _ = scores.shape
    most, device = units.shape[1], scores.device
    states = torch.full((batch, 2 * most + 1), BLANK, dtype=torch.int64, device=device)
    states[:, 1::2] = units
    skips = torch.zeros_like(states, dtype=torch.bool)
    skips[:, 3::2] = units[:, 1:] != units[:, :-1]
    never = torch.tensor(-torch.inf, device=device)
    reached = torch.full(states.shape, -torch.inf, device=device)
    back = torch.zeros(longest, batch, states.shape[1], dtype=torch.uint8, device=device)
    for t in range(longest):
        here = scores[:, t].float().gather(1, states)
        if t == 0:
            reached[:, :2] = here[:, :2]
            continue
        ways = torch.stack([
            reached,
            torch.nn.functional.pad(reached[:, :-1], (1, 0), value=-torch.inf),
            torch.where(skips, torch.nn.functional.pad(reached, (2, 0), value=-torch.inf)[:, : states.shape[1]], never),
        ])  # fmt: skip
        best, way = ways.max(0)
        running = (t < steps)[:, None]
        reached = torch.where(running, best + here, reached)
        back[t] = torch.where(running, way, 0)
    ends = torch.stack([2 * counts, (2 * counts - 1).clamp(min=0)], 1)
    at_ends = reached.gather(1, ends)
    state = ends.gather(1, at_ends.argmax(1, keepdim=True)).squeeze(1)
    possible = torch.isfinite(at_ends.amax(1)) & (steps > 0)
    first = torch.full((batch, most + 1), longest, dtype=torch.int64, device=device)  # the last column takes what is no unit
    last = torch.full_like(first, -1)
    for t in range(longest - 1, -1, -1):
        spoken = (state % 2 == 1) & (t < steps)
        column = torch.where(spoken, state // 2, most)[:, None]
        here = torch.full_like(column, t)
        first.scatter_(1, column, here)  # the loop goes backwards, so the last one that is written is the first step
        last.scatter_reduce_(1, column, here, "amax")
        state = state - back[t].gather(1, state[:, None]).squeeze(1).to(torch.int64)
    return Paths(first[:, :most], last[:, :most], possible)
