"""What a feature worker makes of a clip for a teacher that hears it in its own way.

A worker imports this module, so it imports neither torch nor a model library.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from arkfast.audio import SAMPLING_RATE, LogMel
from arkfast.records import InputError


class Samples:
    """The clip as it is, for a teacher whose own processor runs when the batch is there."""

    def __call__(self, waveform: np.ndarray, /) -> Mapping[str, np.ndarray]:
        """``samples``: float32 [samples] at 16 kHz."""
        return {"samples": waveform}


class Window:
    """Log-mel features of a window of fixed length, silence after the clip, as Whisper models are trained.

    Args:
        log_mel: the features.
        samples: of the window, at 16 kHz.
    """

    def __init__(self, log_mel: LogMel, samples: int) -> None:
        self.log_mel, self.samples = log_mel, samples

    def __call__(self, waveform: np.ndarray, /) -> Mapping[str, np.ndarray]:
        """``input_features``: float32 [n_mels, frames of the window].

        Raises:
            InputError: the clip is longer than the window.
        """
        if len(waveform) > self.samples:
            raise InputError(
                f"the clip has {len(waveform) / SAMPLING_RATE:.1f} s and the teacher hears {self.samples / SAMPLING_RATE:g} s at most; "
                f"split it, or leave such rows out with --on_bad_audio"
            )
        window = np.pad(waveform.astype(np.float32, copy=False), (0, self.samples - len(waveform)))
        features, _ = self.log_mel([window], max_samples=None)
        return {"input_features": np.asarray(features)[0]}
