"""Features of a recording made louder or quieter.

``Gain`` is sent to worker processes, so it needs NumPy alone.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from arkfast.audio import LogMel
from arkfast.audio.waveform import as_samples

if TYPE_CHECKING:
    from arkfast.data.pipeline import FeatureItem


class Gain:
    """Log-mel features of samples that are multiplied by a factor first. ``FeaturePipeline`` takes it as a second extractor.

    Args:
        log_mel: makes the features.
        factor: a number above 0. Samples may leave −1 … 1, because nothing is stored in integers.
    """

    def __init__(self, log_mel: LogMel, factor: float) -> None:
        self._log_mel, self._factor = log_mel, np.float32(factor)

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Float32 [n_mels, T] of a waveform, float32 [samples].

        Raises:
            InputError: samples times the factor are not finite.
        """
        with np.errstate(over="ignore"):  # LogMel says what overflows
            louder = as_samples("waveform", waveform) * self._factor
        features, frames = self._log_mel([louder], max_samples=None)
        return np.asarray(features)[0, :, : int(frames[0])]


def with_gain(items: Generator[FeatureItem, None, None]) -> Generator[FeatureItem, None, None]:
    """The items with the features that ``Gain`` made. Errors and results that were known before pass through."""
    with closing(items) as stream:
        for item in stream:
            yield item._replace(features=item.prepared, prepared=None) if isinstance(item.prepared, np.ndarray) else item
