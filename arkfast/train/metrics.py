"""What a step measured, added up over a window and over all ranks in one packed tensor.

Knows sums, counts and how they travel; knows neither losses nor files. One all-reduce carries everything that is logged of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from arkfast.distill import LossSum
from arkfast.train.parallel import Parallel

PHASES = ("data_wait", "move_batch", "encode", "rollout", "teacher", "student_score", "backward", "optimizer")
"""What is timed in a step; each is logged as its largest value over the ranks."""
NAMES_OF_PHASES = {
    "data_wait": "data_wait_max",
    "move_batch": "move_batch_max",
    "encode": "encode_time_max",
    "rollout": "rollout_time_max",
    "teacher": "teacher_time_max",
    "student_score": "student_score_time_max",
    "backward": "backward_max",
    "optimizer": "optimizer_max",
}
"""The original's names in the log, where it has them."""
PLACES = (*PHASES, "positions")
"""What each rank reports in a place of its own."""
COMPUTE = ("encode", "rollout", "teacher", "student_score")
"""Phases whose sum is the original's ``compute``."""


class StepMetrics:
    """Packs, adds up and names.

    Args:
        names: of the stage's metrics, each a (sum, count) pair in every ``LossSum``.
        sums: of further host numbers that are added up over the ranks.
        parallel: the processes.
    """

    def __init__(self, names: Sequence[str], sums: Sequence[str], parallel: Parallel) -> None:
        self._names, self._sums, self._parallel = tuple(names), tuple(sums), parallel

    def total(
        self, losses: Sequence[LossSum], count: torch.Tensor, sums: Mapping[str, float], phases: Mapping[str, float]
    ) -> dict[str, float]:
        """One step over all ranks: each metric's mean, each sum, each phase's largest time. Every rank calls it.

        Args:
            losses: of this rank's micro-batches; none where it was idle.
            count: scalar, their counting positions.
            sums: host numbers by the names given to the constructor.
            phases: seconds by ``PHASES``.
        """
        device = self._parallel.device
        own = torch.tensor([sums[name] for name in self._sums] + self._slots({**phases, "positions": 0.0}), dtype=torch.float64).to(device)
        own[len(self._sums) + self._parallel.rank * len(PLACES) + PLACES.index("positions")] = count
        pairs = torch.zeros(len(self._names), 2, dtype=torch.float64, device=device)
        for loss in losses:
            assert set(loss.metrics) == set(self._names), f"a step measures {sorted(self._names)}, got {sorted(loss.metrics)}"
            pairs += torch.stack([torch.stack([*loss.metrics[name]]).double() for name in self._names])
        packed = self._parallel.total(torch.cat([pairs.flatten(), own])).tolist()
        means = {name: packed[2 * i] / max(packed[2 * i + 1], 1.0) for i, name in enumerate(self._names)}
        rest = packed[2 * len(self._names) :]
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
        times = {logged: max(rank[name] for rank in ranks) for name, logged in NAMES_OF_PHASES.items()}
        times["compute_max"] = max(sum(rank[name] for name in COMPUTE) for rank in ranks)
        times["teacher_time_min"] = min(rank["teacher"] for rank in ranks)
        positions = [int(rank["positions"]) for rank in ranks]
        counts = {"local_valid_count_min": min(positions), "local_valid_count_max": max(positions)}
        return {name: round(seconds, 4) for name, seconds in times.items()} | counts
