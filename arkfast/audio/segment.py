"""Which samples of a recording a segment means, and how many it may have: one rule for files and for samples in memory."""

from __future__ import annotations

import math
import numbers
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from arkfast.audio.limits import most_samples
from arkfast.audio.reference import SAMPLING_RATE
from arkfast.records import InputError

Sample = TypeVar("Sample", bound=np.generic)

END_TOLERANCE = 0.05  # seconds by which end_time may pass the recording's end: manifests round, and encoders pad


def segment_times(begin: float | None, end: float | None, label: str) -> tuple[float, float | None]:
    """Start and end in seconds; an open start (None or negative) is 0, an open end None.

    Raises:
        InputError: one is no finite number, or the segment ends where it begins or before.
    """
    for field, value in (("begin_time", begin), ("end_time", end)):
        if value is not None and (not isinstance(value, numbers.Real) or not math.isfinite(value)):
            raise InputError(f"{label}: {field} must be a finite number of seconds or null, got {value!r}")
    begin = 0.0 if begin is None or begin < 0 else float(begin)
    end = None if end is None or end < 0 else float(end)
    if end is not None and begin >= end:
        relation = "is" if begin == end else "is past"
        raise InputError(f"{label}: begin_time {begin:g} {relation} end_time {end:g}: a segment must begin before it ends")
    return begin, end


def outside(begin: float, end: float | None, seconds: float) -> str | None:
    """Why a recording of ``seconds`` does not hold a segment: begun at or after its end, or ended more than 0.05 s past it. Else None."""
    past = f"begin_time {begin:g}" if begin >= seconds else f"end_time {end:g}" if (end or 0) > seconds + END_TOLERANCE else None
    return f"{past} is past the recording's end at {seconds:g} s" if past else None


def open_end(cut: str, seconds: float | None) -> str:
    """The message about a recording that is ``cut`` and asked for to its end, which may be known to stand at ``seconds``."""
    return cut if seconds is None else f"{cut}; or give an end_time before {seconds:g}"


def check_samples(begin: float, start: int, stop: int, rate: int, label: str) -> None:
    """Refuses a segment that is shorter than a sample.

    Raises:
        InputError: sample ``stop`` is not behind ``start``.
    """
    if stop <= start:
        raise InputError(f"{label}: the segment from {begin:g} to {stop / rate:g} s holds no samples")


def too_long(label: str, seconds: float | None, max_seconds: float | None) -> InputError:
    """The error about a stretch over the limit; ``seconds`` is None where its length is not known."""
    length = "more" if seconds is None else f"{seconds:g}"
    return InputError(f"{label}: {length} s of audio, over the limit of {max_seconds:g} s: split it into segments")


def cut_samples(
    samples: NDArray[Sample],
    begin: float | None,
    end: float | None,
    *,
    max_seconds: float | None,
    label: str,
    sampling_rate: int = SAMPLING_RATE,
) -> NDArray[Sample]:
    """A segment of samples in memory, as ``load`` cuts it from a file of theirs.

    Args:
        samples: [n] of any type.
        begin: start in seconds; None or any negative number is the first sample.
        end: end in seconds; None or any negative number is the last sample.
        max_seconds: the longest segment allowed; None allows any.
        label: what errors call the samples.
        sampling_rate: of the samples, in Hz.

    Returns:
        A view of the segment.

    Raises:
        InputError: there are no samples, the segment is outside them or holds none, or it is over the limit.
    """
    begin, end = segment_times(begin, end, label)
    if np.ndim(samples) != 1:
        raise InputError(f"{label}: expected samples in one dimension, got shape {list(np.shape(samples))}: mix channels down to mono")
    if not len(samples):
        raise InputError(f"{label}: the recording holds no samples")
    if reason := outside(begin, end, len(samples) / sampling_rate):
        raise InputError(f"{label}: {reason}")
    start = round(begin * sampling_rate)
    stop = len(samples) if end is None else min(round(end * sampling_rate), len(samples))
    check_samples(begin, start, stop, sampling_rate, label)
    most = most_samples(max_seconds, sampling_rate)
    if most is not None and stop - start > most:
        raise too_long(label, (stop - start) / sampling_rate, max_seconds)
    return samples[start:stop]
