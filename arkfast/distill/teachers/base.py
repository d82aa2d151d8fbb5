"""What a teacher is to the trainer."""

from __future__ import annotations

from typing import Any, Protocol

from arkfast.records import Batch, Rollout, TeacherScores


class Teacher(Protocol):
    """A stronger model that scores exactly the tokens that the student produced. It is never trained."""

    def begin(self, batch: Batch) -> Any:
        """Start on what does not wait for the student's tokens, such as the audio and the prompts; what it returns goes to ``score``."""
        ...

    def score(self, batch: Batch, rollout: Rollout, begun: Any = None) -> TeacherScores:
        """Its top-k and its scores at the student's top-k for every produced token, in student ids, without gradient.

        Args:
            batch: B utterances.
            rollout: what the student produced, with its top-k ids.
            begun: what ``begin`` returned for the batch; None: nothing was begun.
        """
        ...

    def transcribe(self, batch: Batch, *, max_new_tokens: int) -> Rollout:
        """Its own greedy transcripts, in student ids."""
        ...
