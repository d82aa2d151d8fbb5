"""Which of a recording's channels are heard, and how they become one.

A channel is a number from 0, as Kaldi, NeMo and Lhotse count. Without a choice the average of all channels is heard, which is wrong for two
talkers with a channel each and gives silence where one channel is the other turned upside down; ``levels`` tells the latter from what is
measured here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from arkfast.records import InputError

AVERAGE = "average"
"""How "all channels, averaged" is written."""
ALL: tuple[int, ...] = ()
"""The choice of all channels, averaged."""

Channel = int | Sequence[int] | None
"""A choice: one channel, the average of several, or (None or none of them) the average of all."""


def parse_channel(value: object) -> tuple[int, ...] | None:
    """The channels that a row or a flag names, in the order given.

    Args:
        value: a number from 0 (also as text, or as a float that is whole), a list of such numbers, several in one text with commas between
            them, ``average``, or None.

    Returns:
        The channels' numbers; ``ALL`` for ``average``; None for None.

    Raises:
        ValueError: anything else.
    """
    if value is None:
        return None
    if isinstance(value, str):
        if value.strip().lower() == AVERAGE:
            return ALL
        numbers = [int(part) if part.isdecimal() and part.isascii() else None for part in map(str.strip, value.split(","))]
    elif isinstance(value, (list, tuple)):
        numbers = [_number(item) for item in value]
    else:
        numbers = [_number(value)]
    found = tuple(number for number in numbers if number is not None)
    if not found or len(found) < len(numbers) or len(set(found)) < len(found):
        raise ValueError(f"expected a channel's number from 0, several of them, or {AVERAGE}")
    return found


def check_choice(channel: str | None, audio_track: int | None) -> None:
    """Refuses what ``--channel`` and ``--audio_track`` may not be.

    Raises:
        InputError: text that names no channel, or a negative track.
    """
    try:
        parse_channel(channel)
    except ValueError as error:
        raise InputError(f"--channel: {error}, got '{channel}'") from error
    if audio_track is not None and audio_track < 0:
        raise InputError(f"--audio_track must be an audio track's number from 0, got {audio_track}")


def _number(value: object) -> int | None:
    """A whole number from 0; tables with gaps hold such numbers as floats."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if 0 <= value < 1 << 31 and value == int(value) else None


def written_channel(channels: Sequence[int]) -> int | str | list[int]:
    """How a choice is written in a row: ``parse_channel`` reads it."""
    return AVERAGE if not channels else channels[0] if len(channels) == 1 else list(channels)


def chosen(channel: Channel) -> tuple[int, ...]:
    """A choice as the channels' numbers; ``ALL`` for all."""
    return ALL if channel is None else (channel,) if isinstance(channel, int) else tuple(channel)


def check_channel(label: str, channels: Sequence[int], count: int) -> None:
    """Refuses a choice that a recording does not have.

    Raises:
        InputError: one of ``channels`` is none of the ``count`` channels.
    """
    for channel in channels:
        if not 0 <= channel < count:
            there = "has one channel, number 0" if count == 1 else f"has {count} channels, numbers 0 to {count - 1}"
            raise InputError(f"{label}: there is no channel {channel}: the recording {there}")


def check_track(label: str, audio_track: int, count: int) -> None:
    """Refuses an audio track that a file does not have.

    Raises:
        InputError: ``audio_track`` is none of the ``count`` audio tracks.
    """
    if not 0 <= audio_track < count:
        there = "one audio track, number 0" if count == 1 else f"{count} audio tracks, numbers 0 to {count - 1}"
        raise InputError(f"{label}: there is no audio track {audio_track}: the file has {there}")


class Mixer:
    """Blocks of several channels to blocks of one, with an account of what became of their energy.

    Args:
        channels: the channels that are averaged; ``ALL`` for all.

    Attributes:
        peak: the largest absolute sample that was given out.
        energy: sum of squares of the samples that were given out.
        heard_energy: sum of squares of the channels that went in, averaged over them.
    """

    def __init__(self, channels: Sequence[int] = ALL) -> None:
        self._channels = tuple(channels)
        self.peak = self.energy = self.heard_energy = 0.0

    def mix(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """The average of the chosen channels: [n, channels] → a new [n]."""
        # A recording whose layout changes midway has one channel for a while, which is then what all of them are.
        columns = range(block.shape[1]) if not self._channels or block.shape[1] == 1 else self._channels
        share = np.float32(1 / len(columns))
        mono = block[:, columns[0]] * share
        if not len(mono):
            return mono
        with np.errstate(all="ignore"):  # what is not finite is reported by whoever takes the samples
            # Column by column: np.mean over a short axis is slower than most decoders.
            for column in columns[1:]:
                mono += block[:, column] * share
            energy = float(np.vdot(mono, mono))
            heard = [float(np.vdot(part, part)) for part in (block[:, column] for column in columns)] if len(columns) > 1 else [energy]
        self.peak = max(self.peak, float(mono.max()), -float(mono.min()))
        self.energy += energy
        self.heard_energy += sum(heard) / len(heard)
        return mono
