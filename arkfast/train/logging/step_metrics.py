"""What a step measured, added up over a window on the device and over all ranks on the host.

One all-reduce carries everything that is logged of a step. It happens when the numbers have come to the host, so that the device never
waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from arkfast.distill import LossSum
from arkfast.train.logging.phase_table import PHASES, STEP
from arkfast.train.parallel import Parallel

TIMED = tuple(phase for phase in PHASES if phase is not STEP)
"""What is timed within a step; each is logged as its largest value over the ranks."""
PLACES = (*(phase.name for phase in TIMED), "positions")
"""What each rank reports in a place of its own."""
COMPUTE = tuple(phase.name for phase in TIMED if phase.compute)
"""Phases whose sum is the original's ``compute``."""


class StepMetrics:
    """Packs what a step measured, adds it up over ranks and gives it names.

    Args:
        names: of the stage's metrics, each a (sum, count) pair in every ``LossSum``.
        sums: of further host numbers that are added up over the ranks.
        parallel: the processes.
    """

    def __init__(self, names: Sequence[str], sums: Sequence[str], parallel: Parallel) -> None:
        self._names, self._sums, self._parallel = tuple(names), tuple(sums), parallel

    def pack(self, losses: Sequence[LossSum]) -> torch.Tensor:
        """[2 · metrics] float64 on the device: the sum and the count of each metric over this rank's micro-batches; zeros without any."""
        pairs = torch.zeros(len(self._names), 2, dtype=torch.float64, device=self._parallel.device)
        for loss in losses:
            assert set(loss.metrics) == set(self._names), f"a step measures {sorted(self._names)}, got {sorted(loss.metrics)}"
            pairs += torch.stack([torch.stack([*loss.metrics[name]]).double() for name in self._names])
        return pairs.flatten()

    def total(self, packed: Sequence[float], positions: float, sums: Mapping[str, float], phases: Mapping[str, float]) -> dict[str, float]:
        """One step over all ranks: each metric's mean, each sum, each phase's largest time. Every rank calls it.

        Args:
            packed: what ``pack`` gave.
            positions: this rank's counting positions.
            sums: host numbers by the names given to the constructor.
            phases: seconds by the names of ``PHASES``.
        """
        own = [*packed, *(sums[name] for name in self._sums), *self._slots({**phases, "positions": positions})]
        added_up = self._parallel.total(torch.tensor(own, dtype=torch.float64)).tolist()
        means = {name: added_up[2 * i] / (added_up[2 * i + 1] or 1.0) for i, name in enumerate(self._names)}
        rest = added_up[2 * len(self._names) :]
        added = dict(zip(self._sums, rest, strict=False))
        return means | added | self._extremes(rest[len(self._sums) :])

    def _slots(self, phases: Mapping[str, float]) -> list[float]:
        """This rank's times in its own place among those of all ranks, so that a sum over ranks is a gather."""
        slots = [0.0] * (self._parallel.world * len(PLACES))
        start = self._parallel.rank * len(PLACES)
        slots[start : start + len(PLACES)] = [phases.get(name, 0.0) for name in PLACES]
        return slots

    def _extremes(self, slots: Sequence[float]) -> dict[str, float]:
        ranks = [dict(zip(PLACES, slots[i : i + len(PLACES)], strict=True)) for i in range(0, len(slots), len(PLACES))]
        times = {phase.logged: max(rank[phase.name] for rank in ranks) for phase in TIMED}
        times["compute_max"] = max(sum(rank[name] for name in COMPUTE) for rank in ranks)
        times["teacher_time_min"] = min(rank["teacher"] for rank in ranks)
        positions = [int(rank["positions"]) for rank in ranks]
        counts = {"local_valid_count_min": min(positions), "local_valid_count_max": max(positions)}
        return {name: round(seconds, 4) for name, seconds in times.items()} | counts
