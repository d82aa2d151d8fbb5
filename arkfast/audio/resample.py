"""One sampling rate to another, block by block.

Resampling is soxr's high quality, whoever decoded: other resamplers move the features above 7 kHz.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from arkfast.installation import install_hint


class Resampler:
    """Collects blocks at one rate and gives the whole, or one part after another, at another rate; it never holds the whole at the first.

    Args:
        rate: Hz of what comes in.
        target: Hz of what comes out.

    Raises:
        ImportError: soxr is needed (the rates differ) and not installed.
    """

    def __init__(self, rate: int, target: int) -> None:
        self.taken = 0
        self._given = 0
        self._rate, self._target = rate, target
        self._done: list[NDArray[np.float32]] = []
        self._stream = None
        if rate != target:
            try:
                import soxr
            except ModuleNotFoundError as error:
                raise ImportError(f"resampling needs soxr: {install_hint('asr')}") from error
            self._stream = soxr.ResampleStream(rate, target, 1, dtype="float32", quality="HQ")

    def push(self, block: NDArray[np.float32]) -> None:
        """Takes a block [n]; ``taken`` counts the samples."""
        self.taken += len(block)
        self._done.append(block if self._stream is None else self._stream.resample_chunk(block))

    def ready(self) -> NDArray[np.float32]:
        """What is done so far and was not given yet; it is forgotten here."""
        samples = np.concatenate(self._done) if self._done else np.empty(0, dtype=np.float32)
        self._done, self._given = [], self._given + len(samples)
        return samples

    def finish(self) -> NDArray[np.float32]:
        """All samples that were not given yet: n taken at ``rate`` give ⌈n · target / rate⌉ in all."""
        if self._stream is None:
            return self.ready()
        self._done.append(self._stream.resample_chunk(np.empty(0, dtype=np.float32), last=True))
        samples = np.concatenate(self._done)
        length = -(-self.taken * self._target // self._rate) - self._given
        if len(samples) < length:  # soxr rounds the length its own way
            return np.pad(samples, (0, length - len(samples)))
        return np.ascontiguousarray(samples[:length])
