"""What computes log-mel features: ``arkfast._C``, or NumPy's reference behind the same interface where the extension was not built.

Both write float32, or bfloat16 as the upper 16 bits of it. What a user may pass is checked before it comes here.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from arkfast.audio.reference import HOP_LENGTH, WINDOW_LENGTH, log_mel_reference, mel_filters, raw_log_mel_reference, scale_reference

Buffer = NDArray[np.float32] | NDArray[np.uint16]
MAX_THREADS = 1024


class Stream(Protocol):
    """The features of a clip that arrives in pieces."""

    @property
    def samples(self) -> int:
        """Samples pushed so far."""

    def push(self, samples: NDArray[np.float32]) -> None:
        """Appends finite samples."""

    def frames(self, final: bool) -> int:
        """Frames that no further sample can change, or, when ``final``, those of the clip if it ended here."""

    def write(self, out: Buffer, final: bool) -> None:
        """Writes features [n_mels, frames(final)], clamped by the maximum so far."""


class Plan(Protocol):
    """Features of whole clips."""

    def find_nonfinite(self, waveforms: list[NDArray[np.float32]]) -> tuple[int, int] | None:
        """(item, sample) of the first NaN or infinity."""

    def compute(
        self, waveforms: list[NDArray[np.float32]], padded: NDArray[np.int64], out: Buffer, fill: float | None = None
    ) -> tuple[int, int] | None:
        """Writes the features of each clip, framed as if zero-padded to ``padded[i]`` samples, and ``fill`` (None: its floor) behind.

        Returns what ``find_nonfinite`` does; ``out`` is of no use unless that is None.
        """

    def stream(self) -> Stream:
        """A new, empty stream."""


class NumpyStream:
    """Recomputes everything whenever it is read."""

    def __init__(self, n_mels: int) -> None:
        self._n_mels = n_mels
        self._chunks: list[NDArray[np.float32]] = []
        self.samples = 0

    def push(self, samples: NDArray[np.float32]) -> None:
        self._chunks.append(samples.copy())
        self.samples += len(samples)

    def frames(self, final: bool) -> int:
        if final:
            return max(self.samples, WINDOW_LENGTH) // HOP_LENGTH
        half = WINDOW_LENGTH // 2
        return 0 if self.samples <= half else (self.samples - half) // HOP_LENGTH + 1

    def write(self, out: Buffer, final: bool) -> None:
        if frames := self.frames(final):
            raw = raw_log_mel_reference(np.concatenate(self._chunks), n_mels=self._n_mels)[:, :frames]
            out[:] = _rounded(scale_reference(raw)[0], out.dtype)


class NumpyPlan:
    """The reference behind the extension's interface."""

    def __init__(self, n_mels: int, threads: int = 0) -> None:
        mel_filters(n_mels)
        if not 0 <= threads <= MAX_THREADS:
            raise ValueError(f"threads must be 0 to {MAX_THREADS}, got {threads}")
        self._n_mels = n_mels

    def find_nonfinite(self, waveforms: list[NDArray[np.float32]]) -> tuple[int, int] | None:
        return next(((i, int(np.argmin(ok))) for i, clip in enumerate(waveforms) if not (ok := np.isfinite(clip)).all()), None)

    def compute(
        self, waveforms: list[NDArray[np.float32]], padded: NDArray[np.int64], out: Buffer, fill: float | None = None
    ) -> tuple[int, int] | None:
        if found := self.find_nonfinite(waveforms):
            return found
        for row, waveform, length in zip(out, waveforms, padded.tolist(), strict=True):
            features, floor = log_mel_reference(waveform, length, self._n_mels)
            row[:, : features.shape[1]] = _rounded(features, out.dtype)
            row[:, features.shape[1] :] = _rounded(np.array(floor if fill is None else fill), out.dtype)
        return None

    def stream(self) -> NumpyStream:
        return NumpyStream(self._n_mels)


def _rounded(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values as float32, or, for uint16, as the bits of bfloat16, rounded to nearest even."""
    values = values.astype(np.float32)
    if dtype == np.float32:
        return values
    bits = values.view(np.uint32).astype(np.uint64)
    # a NaN (of a user's fill) must not be rounded up to infinity
    return np.where(np.isnan(values), 0x7FC0, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


@functools.cache
def extension() -> Any | None:
    """``arkfast._C``, or None after saying once, to the caller's caller, why it is missing."""
    try:
        return importlib.import_module("arkfast._C")
    except ImportError as error:
        warnings.warn(
            f"arkfast: the C++ extension is not available ({error}); LogMel runs on its NumPy reference, several times slower. "
            "Install a C++17 compiler and repeat the installation with ARKFAST_REQUIRE_EXT=1 to see what fails.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
