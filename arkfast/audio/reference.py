"""Log-mel features from their definition, in float64 NumPy: oracle of the tests and fallback where the extension was not built.

It was written independently of ``csrc/``, for one clip at a time and without regard to speed.
Source of the definition: Radford et al. 2022 (Whisper), as ``transformers.WhisperFeatureExtractor`` computes it; the mel scale and
the area normalisation are those of Slaney's Auditory Toolbox (1998).
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

SAMPLING_RATE = 16000  # Hz
HOP_LENGTH = 160  # samples from frame to frame: 10 ms
WINDOW_LENGTH = 400  # samples: 25 ms
BINS = WINDOW_LENGTH // 2 + 1  # 40 Hz apart, 0 to 8000 Hz

_LOG_STEP = np.log(6.4) / 27  # above 1 kHz, 27 mels span a factor of 6.4


def mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Frequencies of Slaney mels: 200/3 Hz per mel up to 15 mel = 1 kHz, exponential above."""
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(_LOG_STEP * (mel - 15)))


@functools.cache
def mel_filters(n_mels: int) -> NDArray[np.float64]:
    """Triangular filters between equally spaced mels from 0 to 8000 Hz, each of area 1.

    Returns:
        [n_mels, 201] float64, read-only.

    Raises:
        ValueError: n_mels is outside 1..149: from 150 on, a filter would cover no frequency bin.
    """
    if not 1 <= n_mels <= BINS:
        raise ValueError(f"n_mels must be 1 to {BINS}, got {n_mels}")
    top = 15 + np.log(8000 / 1000) / _LOG_STEP
    corners = mel_to_hz(np.linspace(0, top, n_mels + 2))
    low, peak, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    hz = np.arange(BINS) * (SAMPLING_RATE / WINDOW_LENGTH)
    rising, falling = (hz - low) / (peak - low), (high - hz) / (high - peak)
    filters = np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)
    if empty := np.flatnonzero(~filters.any(axis=1)).tolist():
        raise ValueError(f"n_mels = {n_mels} is too large: mel filter {empty[0]} would cover no frequency bin of a 400-sample window")
    filters.setflags(write=False)
    return filters


def raw_log_mel_reference(waveform: NDArray[np.floating], padded: int | None = None, n_mels: int = 128) -> NDArray[np.float64]:
    """log10 of one clip's mel energies, framed as if zeros followed it up to ``padded`` samples.

    Frame t is the power spectrum of samples 160t − 200 … 160t + 199 of the padded row, mirrored at both ends, under a periodic Hann
    window; the value is log10(max(mel, 1e-10)).

    Args:
        waveform: [n] finite samples at 16 kHz, n ≥ 1.
        padded: samples of the row, at least n and at least 400 (the mirroring needs more than 200); None is max(n, 400).
        n_mels: mel filters.

    Returns:
        [n_mels, padded // 160] float64.
    """
    padded = max(len(waveform), WINDOW_LENGTH) if padded is None else padded
    assert waveform.ndim == 1
    assert 1 <= len(waveform) <= padded
    assert padded >= WINDOW_LENGTH
    row = np.zeros(padded)
    row[: len(waveform)] = waveform
    row = np.pad(row, WINDOW_LENGTH // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(row, WINDOW_LENGTH)[::HOP_LENGTH][: padded // HOP_LENGTH]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW_LENGTH) / WINDOW_LENGTH)
    power = np.abs(np.fft.rfft(windows * hann, axis=1)) ** 2
    return np.log10(np.maximum(mel_filters(n_mels) @ power.T, 1e-10))


def scale_reference(raw: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """(y + 4) / 4 of raw values y, clamped to within 8 of their maximum (and to −10), and what silence gives under that clamp."""
    floor = max(-10.0, raw.max(initial=-10.0) - 8)
    return (np.maximum(raw, floor) + 4) / 4, (floor + 4) / 4


def log_mel_reference(waveform: NDArray[np.floating], padded: int | None = None, n_mels: int = 128) -> tuple[NDArray[np.float64], float]:
    """Log-mel features of one clip: ``raw_log_mel_reference``, clamped and scaled by ``scale_reference``.

    Returns:
        features: [n_mels, padded // 160] float64.
        floor: what a frame of silence in this clip would give.
    """
    return scale_reference(raw_log_mel_reference(waveform, padded, n_mels))
