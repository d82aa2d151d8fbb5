"""What a teacher is to the trainer, and what it is handed when it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import torch

from arkfast.models.family import Cost, SpeechModel
from arkfast.records import AllowedTokens, Batch, Interface, Rollout, TeacherScores

if TYPE_CHECKING:
    import numpy as np


class Prepare(Protocol):
    """What a feature worker does for a teacher. It is pickled and sent to worker processes, so it belongs to a module that they can import
    and that need not import torch."""

    def __call__(self, waveform: np.ndarray, /) -> Mapping[str, np.ndarray]:
        """The teacher's own inputs of one clip.

        Args:
            waveform: float32 [samples] at 16 kHz.

        Returns:
            Arrays by name, the same names and numbers of axes for every clip; they reach ``Batch.teacher_inputs`` padded with zeros.
        """
        ...


class Teacher(Protocol):
    """A stronger model that scores exactly the tokens that the student produced. It is never trained."""

    prepare: Prepare | None
    """Makes the teacher's own inputs where it does not hear the student's features; None: it does, or it hears nothing."""

    def begin(self, batch: Batch) -> object:
        """Start on what does not wait for the student's tokens, such as the audio and the prompts; what it returns goes to ``score``."""
        ...

    def score(self, batch: Batch, rollout: Rollout, begun: object = None) -> TeacherScores:
        """Its top-k and its scores at the student's top-k for every produced token, in student ids, without gradient.

        Args:
            batch: B utterances.
            rollout: what the student produced, with its top-k ids.
            begun: what ``begin`` returned for the batch; None: nothing was begun.
        """
        ...

    def transcribe(self, batch: Batch, *, max_new_tokens: int) -> Rollout:
        """Its own greedy answers, in student ids."""
        ...

    @property
    def cost(self) -> Cost | None:
        """The arithmetic that it does on this device; None where that is not known, as of a teacher elsewhere."""
        ...

    def close(self) -> None:
        """Give up what is held outside this process: connections, servers."""
        ...


@dataclass(frozen=True, kw_only=True)
class TeacherRequest:
    """What a backend's ``load`` is handed."""

    model: Path
    """The teacher's checkpoint folder."""
    student: SpeechModel
    """The student's model, perhaps without weights yet; its configuration and what it hears may be read."""
    interface: Interface
    """The student's: its tokenizer above all."""
    task: str
    """What student and teacher do."""
    allowed: AllowedTokens
    """Which ids the student may produce; the teacher's distribution is restricted to the same."""
    top_k: int
    """How many of its best ids the teacher reports."""
    device: torch.device
    dtype: torch.dtype
    """What it computes in."""
    attn_implementation: str
    lse_temperature: float | None = None
    """τ where the teacher reports the log-sum-exp of its scores / τ too; None: it is not needed. For backends whose ``OPTIONS`` names
    tail_bucket."""
    sampled: bool = False
    """Whether the teacher reports its scores of the produced tokens too, and its log-sum-exp; for backends whose ``OPTIONS`` names
    opd_objective."""
    states: bool = False
    """Whether the teacher reports its hidden states and its head too; for backends whose ``OPTIONS`` names support full."""
    positions: int = 0
    """Positions that the student's longest prompt and answer take together; 0: not known."""
    prompt: str | None = None
    """What the user wants the teacher to be asked; None: the backend's own words. For backends whose ``OPTIONS`` names the flag."""
    full_attention: bool = False
    """Whether an encoder that attends in windows is to attend to whole clips; for backends whose ``OPTIONS`` names the flag."""
    unsupported_language: Literal["skip", "sft", "none"] = "skip"
    """What becomes of rows whose language the teacher does not know: left out of the loss and counted, learnt by their references where
    they have one, or told no language; for backends whose ``OPTIONS`` names the flag."""
