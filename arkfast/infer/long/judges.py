"""How loud a recording is from frame to frame, or how likely it holds speech: what cuts are chosen by.

``Energy`` is arithmetic on the waveform. ``Silero`` asks the network of the silero-vad package, whose wheel brings its weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from arkfast.audio.levels import QUIET_PEAK
from arkfast.infer.long.cuts import Frames
from arkfast.installation import install_hint
from arkfast.records import InputError

ENERGY_FRAME = 160
"""Samples: 10 ms, a frame of the features."""
FLOOR_DB = -70.0
"""Frames at or below this level, full scale at 0 dB, are equally quiet; it is below the noise of any room."""
SILERO_FRAME = 512
"""Samples: 32 ms, what the network takes at a time."""
SPEECH = 0.2
"""A frame that the network takes for speech with this probability or more is heard. The package's own threshold is 0.5; a clip that holds
noise costs less than a word that is lost."""
SURELY_NONE = 0.01
"""Frames at or below this probability are equally quiet."""
_RATE = 16000


class Judge(Protocol):
    """Tells frames' levels."""

    frame: int
    """Samples of a frame, at 16 kHz."""

    def __call__(self, samples: NDArray[np.float32]) -> Frames:
        """Judge whole frames.

        Args:
            samples: float32 [n · frame] at 16 kHz.
        """


class Energy:
    """Levels in decibels. What never passes −80 dB of full scale, which is dither and no speech, is not heard; everything else is."""

    frame = ENERGY_FRAME

    def __call__(self, samples: NDArray[np.float32]) -> Frames:
        """See ``Judge``."""
        blocks = samples.reshape(-1, self.frame)
        power = blocks.var(axis=1, dtype=np.float64)  # a constant offset is no sound
        level = np.maximum(10 * np.log10(np.maximum(power, 1e-20)), FLOOR_DB).astype(np.float32)
        return Frames(level, np.abs(blocks).max(axis=1) >= QUIET_PEAK)


class Silero:
    """Probabilities of speech by silero-vad, on the CPU, in decibels.

    Raises:
        InputError: the package is not installed.
    """

    frame = SILERO_FRAME

    def __init__(self) -> None:
        with _one_thread():
            try:
                from silero_vad import load_silero_vad
            except ImportError as error:
                raise InputError(f"--vad silero needs the package silero-vad, {install_hint('vad')}; --vad energy needs none") from error
            self._model = load_silero_vad()

    def __call__(self, samples: NDArray[np.float32]) -> Frames:
        """See ``Judge``."""
        import torch

        with _one_thread(), torch.inference_mode():
            said = self._model.audio_forward(torch.from_numpy(samples)[None], _RATE)
        probability = said.numpy().reshape(-1)
        return Frames(10 * np.log10(np.maximum(probability, np.float32(SURELY_NONE))), probability >= SPEECH)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The network is so small that threads only wait for one another, and the package sets one for the whole process for that reason."""
    import torch

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)
