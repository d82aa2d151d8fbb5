"""What a caller may give as audio, brought to one form: 16 kHz mono float32 samples.

Knows paths, encoded bytes, arrays at any rate and segments; knows no features and no prompt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from arkfast.records import InputError

SAMPLING_RATE = 16_000  # Hz, what the encoder was trained on


def read_audio(
    source: Any, *, sampling_rate: int = SAMPLING_RATE, begin: float | None = None, end: float | None = None, where: str | None = None
) -> np.ndarray:
    """Samples of a recording or of a segment of it.

    Args:
        source: a path, the bytes of an audio file, or a mono array or tensor [samples] (float in −1..1, or int16).
        sampling_rate: of an array, in Hz; a file knows its own.
        begin: start of the segment in seconds; None or any negative number is the start.
        end: end of the segment in seconds, at most 0.05 s past the recording's; None or any negative number is the end.
        where: what an error's message begins with, besides the path.

    Returns:
        float32 [samples] at 16 kHz.

    Raises:
        InputError: the source cannot be used, or the segment lies outside it.
    """
    if isinstance(source, (str, Path, bytes)):
        from arkfast import audio

        if isinstance(source, str) and source.startswith(("http://", "https://")):
            raise InputError(f"{where or 'audio'}: {source} is an address; download it and give the file's path")
        return audio.load(source, begin=begin, end=end, name=where)
    samples = _mono(source, where or "audio array")
    if begin is not None or end is not None:
        from arkfast.audio.segment import cut_samples

        label = f"{where or 'audio array'}: segment {begin or 0:g} to {'its end' if end is None else f'{end:g} s'}"
        samples = cut_samples(samples, begin, end, max_seconds=None, label=label, sampling_rate=sampling_rate)
    return resample(samples, sampling_rate)


def resample(samples: np.ndarray, sampling_rate: int) -> np.ndarray:
    """float32 [samples] at ``sampling_rate`` Hz → at 16 kHz, by the resampler that files go through (soxr, HQ)."""
    if sampling_rate == SAMPLING_RATE:
        return samples
    import soxr

    return np.asarray(soxr.resample(samples, sampling_rate, SAMPLING_RATE, quality="HQ"), dtype=np.float32)


def seconds(value: Any, where: str) -> float | None:
    """A time of a request in seconds; None and negative numbers (the published convention is −1) mean "not given"."""
    if value is None:
        return None
    try:
        time = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where}: a time must be a number of seconds, got {value!r}") from None
    return None if time < 0 else time


def _mono(source: Any, where: str) -> np.ndarray:
    samples = np.asarray(source)
    if samples.ndim != 1 or not samples.size:
        raise InputError(
            f"{where}: expected a path, bytes or a one-dimensional array of samples, got shape {list(samples.shape)}; mix channels down"
        )
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / np.float32(32768)
    if samples.dtype.kind != "f":
        raise InputError(f"{where}: samples must be floats in -1..1 or int16, got {samples.dtype}; convert and scale them")
    return np.ascontiguousarray(samples, dtype=np.float32)
