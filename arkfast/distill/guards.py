"""Which of a rollout's positions are trained: what becomes of empty rollouts, of loops and of rollouts that are far too long.

A guard takes positions out of the loss and counts the rows in which it did; it changes no rollout. What is left out has no part in the
mean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from arkfast.engine.guards import loop_ends
from arkfast.records import Batch, Rollout, TeacherScores

EmptyRollout = Literal["eos", "reference", "skip"]
Counters = dict[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Guards:
    """What is guarded against; the default is nothing."""

    empty: EmptyRollout = "eos"
    """What a rollout of nothing but the end token is learnt by: eos: its one position, like any other; reference: its utterance's
    reference, by cross-entropy; skip: nothing. A row without a reference, and one that the teacher could not score, is skipped."""
    loops: bool = False
    """Whether positions past the length at which a row has gone into a loop are left out; ``engine.guards`` says what a loop is."""
    length_ratio: float = 0.0
    """Positions past so many times the reference's length are left out; 0 leaves none out, and rows without a reference are not judged."""

    @property
    def needs_references(self) -> bool:
        """Whether batches must carry targets where rows have them."""
        return self.empty == "reference" or self.length_ratio > 0

    @property
    def counters(self) -> tuple[str, ...]:
        """Names of what ``guarded`` counts."""
        empty = () if self.empty == "eos" else ("guarded_empty_rows",)
        loops = ("guarded_looped_rows",) if self.loops else ()
        return (*empty, *loops, *(("guarded_long_rows",) if self.length_ratio else ()))


def guarded(guards: Guards, batch: Batch, rollout: Rollout, scores: TeacherScores) -> tuple[TeacherScores, Counters]:
    """The teacher's scores without the positions that are guarded against, and how many rows each guard acted on.

    The numbers of rows are sums, so their count is 0. With ``empty="reference"`` the host learns once which rows are empty; nothing else
    here waits for the device.
    """
    row, position = rollout.packed_index()
    none = torch.zeros((), device=row.device)
    valid, learnt, counters = scores.valid, scores.by_reference, Counters()
    references = torch.zeros_like(rollout.lens) if batch.target_lens is None else batch.target_lens[rollout.owner]
    if guards.empty != "eos":
        empty = rollout.stopped & (rollout.lens == 1)
        valid = valid & ~empty[row]
        counters["guarded_empty_rows"] = (empty.sum().float(), none)
        if guards.empty == "reference":
            # A row that the teacher leaves out, as one in a language that it does not know, stays as the teacher has it.
            scored = torch.zeros_like(empty).index_put((row,), scores.valid)
            learnt = (*learnt, *rollout.owner[empty & scored & (references > 0)].tolist())
    if guards.loops:
        ends = loop_ends(rollout.tokens, rollout.lens, rollout.tokens.shape[1])
        past = (ends > 0)[row] & (position >= ends[row])
        valid = valid & ~past
        counters["guarded_looped_rows"] = ((ends > 0).sum().float(), none)
    if guards.length_ratio:
        limits = (guards.length_ratio * references).ceil()
        long = (references > 0) & (rollout.lens > limits)
        valid = valid & ~(long[row] & (position >= limits[row]))
        counters["guarded_long_rows"] = (long.sum().float(), none)
    return replace(scores, valid=valid, by_reference=learnt), counters
