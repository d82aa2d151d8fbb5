"""A teacher in one file, with features of its own: the loudness of every tenth of a second decides which ids it favours.

A feature worker imports this module for ``Loudness``, so torch is imported where a score is made.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

TENTH = 1600  # samples


class Loudness:
    """[tenths] loudness, and the process that made it."""

    def __call__(self, waveform: np.ndarray) -> dict[str, np.ndarray]:
        tenths = waveform[: max(len(waveform) // TENTH, 1) * TENTH]
        loudness = np.sqrt((tenths.reshape(max(len(waveform) // TENTH, 1), -1) ** 2).mean(1))
        return {"loudness": loudness.astype(np.float32), "process": np.array([os.getpid()])}


class ToyTeacher:
    cost = None
    seen: list[Any] = []  # noqa: RUF012  (what every batch brought, for the test to look at)
    closed = 0

    def __init__(self, request: Any) -> None:
        self.prepare = Loudness()
        self._top_k, self._ids = request.top_k, request.allowed.ranges[0]

    def begin(self, batch: Any) -> None:
        ToyTeacher.seen.append((batch.ids, batch.teacher_inputs))

    def score(self, batch: Any, rollout: Any, begun: object = None) -> Any:
        """Id i of the vocabulary scores the row's loudness times −|i − 7|."""
        import torch

        from arkfast.records import TeacherScores

        row, _ = rollout.packed_index()
        loudness = batch.teacher_inputs["loudness"].values.sum(1)[rollout.owner[row]]
        ids = torch.arange(self._ids[0], self._ids[0] + self._top_k).expand(len(row), -1).int()
        own = rollout.topk_ids

        def scored(which: Any) -> Any:
            return torch.where(which >= 0, -loudness[:, None] * (which - 7).abs(), float("-inf")).float()

        return TeacherScores(ids=ids, scores=scored(ids), student_scores=scored(own), valid=torch.ones(len(row), dtype=torch.bool))

    def transcribe(self, batch: Any, *, max_new_tokens: int) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        ToyTeacher.closed += 1


def load(request: Any) -> ToyTeacher:
    return ToyTeacher(request)
