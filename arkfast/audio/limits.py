"""How much of a recording is too much, checked against its header and again while decoding.

The bounds keep one hostile or broken file from taking a machine's memory or an hour of its time. None of them is a statement about speech.
"""

from __future__ import annotations

import math

from arkfast.records import InputError

MAX_BYTES = 4 << 30  # 6 hours of 48 kHz stereo in 16 bits; larger files are archives, not recordings
MAX_SECONDS = 6 * 3600.0  # the result takes 64 kB a second: 1.4 GB
MAX_CHANNELS = 8  # 7.1 surround; more is a multitrack session, whose sum is not a recording of one talker
MIN_RATE, MAX_RATE = 1000, 1_000_000  # Hz; outside it the header is wrong, and resampling would only multiply the damage


def check_format(label: str, channels: int, rate: int, max_channels: int) -> None:
    """Refuses what cannot be mixed down or resampled.

    Raises:
        InputError: more channels than ``max_channels``, or a rate outside 1 kHz to 1 MHz.
    """
    check_count(label, channels, max_channels)
    if not MIN_RATE <= rate <= MAX_RATE:
        raise InputError(f"{label}: a sampling rate of {rate} Hz is outside {MIN_RATE} to {MAX_RATE} Hz")


def check_count(label: str, channels: int, max_channels: int = MAX_CHANNELS) -> None:
    """Refuses more channels than have a common talker.

    Raises:
        InputError: more channels than ``max_channels``.
    """
    if channels > max_channels:
        raise InputError(f"{label}: {channels} channels, at most {max_channels} can be mixed down: choose the talker's with channel")


def check_options(max_seconds: float | None, max_bytes: int | None, max_channels: int) -> None:
    """Refuses limits that nothing could meet.

    Raises:
        ValueError: a limit is not a positive number.
    """
    for name, value in (("max_seconds", max_seconds), ("max_bytes", max_bytes), ("max_channels", max_channels)):
        if value is not None and not value > 0:
            raise ValueError(f"load: {name} must be positive, got {value}")


def most_samples(max_seconds: float | None, rate: int) -> int | None:
    """The samples that a stretch may have: ⌊max_seconds · rate⌋, forgiving the rounding of decimal seconds."""
    return None if max_seconds is None or math.isinf(max_seconds) else math.floor(max_seconds * rate + 1e-6)
