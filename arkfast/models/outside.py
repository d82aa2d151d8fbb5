"""A checkpoint run by another library's own classes: what ours is compared with.

A family that can be run so has a module ``outside`` with a function ``load(folder, device)`` beside its ``family``, which reads the
checkpoint's files by itself. It shares no arithmetic with ours, is slow, takes one clip at a time and computes in float32.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from arkfast.models.family import read_config
from arkfast.records import AllowedTokens, Utterance


class Outside(Protocol):
    """A checkpoint as Transformers runs it."""

    made_of: str
    """Which of Transformers' classes compute, for the report."""
    prompt_from: str
    """Where its prompt's layout comes from, for the report."""

    def refuses(self, utterance: Utterance) -> str | None:
        """Why a clip cannot be compared; None: it can."""
        ...

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """Log-mel features, float32 [n_mels, T], of samples at 16 kHz."""
        ...

    def prompt(self, waveform: np.ndarray, utterance: Utterance) -> list[int]:
        """The ids that the model reads before it answers, its audio placeholders among them."""
        ...

    def audio(self, waveform: np.ndarray) -> Tensor:
        """Decoder embeddings of a clip, float32 [N, H]."""
        ...

    def scores(self, waveform: np.ndarray, utterance: Utterance, answer: Sequence[int]) -> Tensor:
        """Logits over the whole vocabulary at each position of an answer, float32 [len(answer), V], in one dense pass."""
        ...

    def generate(self, waveform: np.ndarray, utterance: Utterance, *, allowed: AllowedTokens, max_new_tokens: int) -> list[int]:
        """Its greedy answer among the allowed ids, the end token included, by Transformers' ``generate``."""
        ...


def find_outside(folder: Path) -> Callable[[Path, torch.device], Outside] | None:
    """What loads a checkpoint of this kind; None where its family has no such module.

    Raises:
        InputError: there is no checkpoint.
    """
    kind = str(read_config(folder).get("model_type"))
    # The name comes out of a file from elsewhere: nothing but a module of this package is ever imported by it.
    if not re.fullmatch(r"[a-z0-9_]+", kind):
        return None
    try:
        found = find_spec(f"arkfast.models.{kind}.outside")
    except ModuleNotFoundError:
        return None
    if found is None:
        return None
    load: Callable[[Path, torch.device], Outside] = import_module(f"arkfast.models.{kind}.outside").load
    return load
