"""Where a long recording is cut: at the quietest place that leaves clips neither long nor short.

Every frame in which something is heard lands in exactly one clip. What is left out is only what nothing is heard in, at the ends of clips.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST_SHARE = 0.5
"""A cut leaves at least this share of the longest clip before it: 15 of 30 s. Longer clips give the model more context."""
REST_SHARE = 1 / 6
"""And at least this share behind it, where the recording's end is near: 5 of 30 s."""
SMOOTH_SECONDS = 0.2
"""A place is as quiet as this much around it, so that the closure of a plosive is no pause."""
PAD_SECONDS = 0.3
"""So much stays before and behind what is heard, where a clip's end is left out."""
TIE_DB = 3.0
"""Places whose level is no more than this above the quietest are as quiet; of them the middle of the longest pause is taken, the last of
equally long ones."""


class Frames(NamedTuple):
    """What a judge says of consecutive frames of equal length."""

    level: NDArray[np.float32]
    """[n] how loud each is, or how likely it holds speech, in decibels."""
    heard: NDArray[np.bool_]
    """[n] whether anything is there that could be speech."""


class Cutter:
    """Takes frames as they come, and gives clips as soon as they are sure. It holds one clip's frames and a few seconds more.

    Args:
        frame_seconds: length of a frame.
        longest: longest clip in seconds; at least 1.

    Attributes:
        at: number of the first frame that no clip has so far; frames before it are in no later clip.
    """

    def __init__(self, frame_seconds: float, longest: float) -> None:
        assert longest >= 1, "a clip holds at least some words"
        self._longest = int(longest / frame_seconds + 1e-6)
        self._least, self._rest = round(LEAST_SHARE * self._longest), round(REST_SHARE * self._longest)
        self._pad, self._smooth = round(PAD_SECONDS / frame_seconds), max(1, round(SMOOTH_SECONDS / frame_seconds))
        self.at = 0
        self._level, self._heard = np.empty(0, dtype=np.float32), np.empty(0, dtype=bool)

    def push(self, frames: Frames) -> list[tuple[int, int]]:
        """Take the next frames.

        Returns:
            Clips that are sure by now, as half-open ranges of frames, ascending and without overlap.
        """
        self._level, self._heard = np.concatenate([self._level, frames.level]), np.concatenate([self._heard, frames.heard])
        return self._sure(self._longest + self._rest)

    def finish(self) -> list[tuple[int, int]]:
        """The clips that are left, when there are no more frames."""
        found = self._sure(self._longest + 1)
        if self._heard.any():
            found.append(self._clip(len(self._level)))
        return found

    def _sure(self, needed: int) -> list[tuple[int, int]]:
        found = []
        self._skip()
        while len(self._level) >= needed:
            found.append(self._clip(self._quietest(self._least, min(self._longest, len(self._level) - self._rest))))
            self._skip()
        return found

    def _skip(self) -> None:
        """Leave out the frames before the first one in which something is heard, but for the padding."""
        first = int(np.argmax(self._heard)) if self._heard.any() else len(self._heard)
        if first > self._pad:
            self._drop(first - self._pad)

    def _clip(self, length: int) -> tuple[int, int]:
        """The next ``length`` frames without the end of them in which nothing is heard."""
        last = int(np.flatnonzero(self._heard[:length])[-1])
        clip = self.at, self.at + min(length, last + 1 + self._pad)
        self._drop(length)
        return clip

    def _drop(self, count: int) -> None:
        self.at += count
        self._level, self._heard = self._level[count:], self._heard[count:]

    def _quietest(self, low: int, high: int) -> int:
        """The frame from ``low`` to ``high`` before which to cut, both included."""
        begin, end = max(0, low - self._smooth), min(len(self._level), high + self._smooth)
        smooth = np.convolve(self._level[begin:end], np.full(self._smooth, 1 / self._smooth), mode="same")[low - begin : high - begin + 1]
        quiet = np.concatenate([[False], smooth <= smooth.min() + TIE_DB, [False]])
        edges = np.flatnonzero(np.diff(quiet))
        begins, ends = edges[::2], edges[1::2]
        longest = len(begins) - 1 - int(np.argmax((ends - begins)[::-1]))
        return low + int(begins[longest] + ends[longest] - 1) // 2
