"""Whisper's log-mel features by PyTorch, on whatever device: for a GPU whose host is too slow to make them.

The definition is that of ``reference``; only rounding differs, since the transform runs in float32. Nothing here waits for the device.
Shape letters: B clips, L samples of the longest, T frames of the longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arkfast.audio.reference import HOP_LENGTH, WINDOW_LENGTH, mel_filters

TOGETHER = 32_000
"""Frames of a pass, padding included: 320 s of audio, whose windows, transforms and places take some 200 MB."""
HALF = WINDOW_LENGTH // 2


class TorchLogMel:
    """Features of clips, each as it would be alone.

    Args:
        n_mels: mel filters.
        device: where they are made.
        least_samples: a shorter clip counts as zero-padded to so many.

    Raises:
        ValueError: as ``LogMel`` does for its ``n_mels``.
    """

    def __init__(self, n_mels: int, device: torch.device, *, least_samples: int = WINDOW_LENGTH) -> None:
        self._device, self._least = device, max(least_samples, WINDOW_LENGTH)
        self._filters = torch.tensor(mel_filters(n_mels).T, dtype=torch.float32, device=device)  # [201, n_mels]
        self._window = torch.hann_window(WINDOW_LENGTH, periodic=True, dtype=torch.float64).to(device, torch.float32)

    def __call__(self, clips: Sequence[NDArray[np.float32]]) -> list[Tensor]:
        """Features of each clip, in order.

        Args:
            clips: float32 [n] samples at 16 kHz of each, finite and at least one.

        Returns:
            Float32 [n_mels, ⌊n / 160⌋] of each, on the device.
        """
        found: list[Tensor] = [torch.empty(0)] * len(clips)
        for group in self._groups([len(clip) for clip in clips]):
            found_together = self._together([clips[i] for i in group])
            for i, features in zip(group, found_together, strict=True):
                found[i] = features
        return found

    def _groups(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Clips that are made together, longest first, so that little is padded and a pass is bounded."""
        group: list[int] = []
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            if group and (len(group) + 1) * (max(lengths[group[0]], self._least) // HOP_LENGTH) > TOGETHER:
                yield group
                group = []
            group.append(i)
        if group:
            yield group

    def _together(self, clips: Sequence[NDArray[np.float32]]) -> list[Tensor]:
        lengths = [max(len(clip), self._least) for clip in clips]
        frames = [length // HOP_LENGTH for length in lengths]
        pinned = self._device.type == "cuda"  # memory from which a GPU fetches it while the host goes on
        padded = torch.zeros(len(clips), max(lengths), pin_memory=pinned)
        for row, clip in zip(padded, clips, strict=True):
            row[: len(clip)] = torch.from_numpy(clip)
        counts = torch.tensor([lengths, frames], pin_memory=pinned)
        samples, (ends, lens) = padded.to(self._device, non_blocking=True), counts.to(self._device, non_blocking=True)
        place = torch.arange(-HALF, padded.shape[1] + HALF, device=self._device).abs().expand(len(clips), -1)  # mirrored at the begin
        place = torch.where(place < ends[:, None], place, 2 * (ends[:, None] - 1) - place).clamp_min(0)  # and at each clip's own end
        spectrum = torch.stft(
            samples.gather(1, place), WINDOW_LENGTH, HOP_LENGTH, window=self._window, center=False, return_complex=True
        )  # [B, 201, T + 1]
        power = torch.view_as_real(spectrum).square().sum(-1).transpose(1, 2)[:, : max(frames)]
        logarithm = torch.matmul(power, self._filters).clamp_min(1e-10).log10()
        past = torch.arange(max(frames), device=self._device) >= lens[:, None]
        loudest = logarithm.masked_fill(past[..., None], -torch.inf).amax((1, 2), keepdim=True)
        features = ((torch.maximum(logarithm, loudest - 8.0) + 4.0) / 4.0).transpose(1, 2)
        return [own[:, :count].contiguous() for own, count in zip(features, frames, strict=True)]
