"""What goes into the engine and what comes out of it, one utterance at a time.

Knows shapes and limits; knows no model and no device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

FinishReason = Literal["stop", "length", "repetition", "error"]
"""Why a transcript ends: an end token; its limit; a loop that was cut; scores that are not numbers, or a fault of the device."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How ids are chosen. Temperature 0 takes the best id, the lowest on a tie; otherwise ids are drawn from softmax(scores / temperature).

    Raises:
        ValueError: a number out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    """Draw from the smallest set of ids whose probability reaches it; 1.0 does not restrict."""
    top_k: int = 0
    """Draw from so many best ids; 0 does not restrict."""
    repetition_penalty: float = 1.0
    """Scores of ids that stand in the prompt or were produced are divided by it, negative ones multiplied (Keskar et al. 2019, "CTRL")."""
    seed: int = 0
    """Of the noise; with the utterance's key, the rollout's number and the position it fixes every draw."""

    def __post_init__(self) -> None:
        for name, sound in (
            ("temperature", 0.0 <= self.temperature < float("inf")),
            ("top_p", 0.0 < self.top_p <= 1.0),
            ("top_k", self.top_k >= 0),
            ("repetition_penalty", 0.0 < self.repetition_penalty < float("inf")),
        ):
            if not sound:
                raise ValueError(f"{name} is out of range: {getattr(self, name)}")

    @property
    def draws(self) -> bool:
        """Whether noise is needed."""
        return self.temperature > 0

    @property
    def restricts(self) -> bool:
        """Whether ids are left out of the draw."""
        return self.draws and (self.top_p < 1.0 or self.top_k > 0)

    @property
    def penalises(self) -> bool:
        """Whether produced ids have to be remembered."""
        return self.repetition_penalty != 1.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """One utterance to transcribe."""

    mel: torch.Tensor
    """[n_mels, T] float32 log-mel."""
    input_ids: torch.Tensor
    """[P] int64 prompt with one placeholder per audio embedding."""
    max_new_tokens: int
    """Length limit, the end token included."""
    key: int = 0
    """``Utterance.key``, from which sampling noise is drawn."""
    sampling: Sampling = Sampling()


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What became of a request."""

    id: int
    """What ``Engine.submit`` returned."""
    tokens: list[int]
    """Produced ids, without the end token."""
    finish_reason: FinishReason
    logprobs: list[float] | None = None
    """Each id's log-probability, the end token's last when it was produced; None unless the engine keeps them."""
    error: str | None = None
    """What went wrong, for the reason ``error``."""
