"""What a teacher is to the trainer."""

from __future__ import annotations

from typing import Protocol

from arkfast.records import Batch, Rollout, TeacherScores


class Teacher(Protocol):
    """A stronger model that scores exactly the tokens that the student produced. It is never trained."""

    def score(self, batch: Batch, rollout: Rollout) -> TeacherScores:
        """Its top-k and its scores at the student's top-k for every produced token, in student ids, without gradient."""
        ...

    def transcribe(self, batch: Batch, *, max_new_tokens: int) -> Rollout:
        """Its own greedy transcripts, in student ids."""
        ...
