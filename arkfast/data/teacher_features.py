"""A teacher's own log-mel features, as a feature worker makes them of a waveform; nothing here imports torch."""

from __future__ import annotations

import numpy as np

from arkfast.audio import LogMel


class TeacherLogMel:
    """A ``Prepare`` that gives ``mel``: float32 [n_mels, frames] at 100 frames a second, each clip for itself.

    Args:
        n_mels: mel filters.
        least_samples: shorter clips are padded with zeros to so many, and their frames count.
    """

    def __init__(self, n_mels: int, *, least_samples: int = 0) -> None:
        self._log_mel, self._least = LogMel(n_mels), least_samples

    def __call__(self, waveform: np.ndarray) -> dict[str, np.ndarray]:
        """See ``Prepare``."""
        short = self._least - len(waveform)
        samples = np.pad(waveform, (0, short)) if short > 0 else waveform
        features, frames = self._log_mel([samples], max_samples=None)
        return {"mel": np.asarray(features)[0, :, : int(frames[0])]}
