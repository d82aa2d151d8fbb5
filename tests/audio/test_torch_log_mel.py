"""Features by PyTorch against the front end that everything else uses, within the bound that the documents state."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from arkfast.audio import LogMel
from arkfast.audio.torch_log_mel import TOGETHER, TorchLogMel
from arkfast.testing import synthetic_speech

BOUND = 1e-4
CPU = torch.device("cpu")
TIME = np.arange(48_000) / 16_000
RNG = np.random.default_rng(0)
SIGNALS = {
    "speech": [synthetic_speech(seconds, seed=i) for i, seconds in enumerate((0.01, 0.3, 1.0, 2.37, 29.9))],
    "noise": [0.1 * RNG.standard_normal(n) for n in (400, 401, 16_000, 77_777)],
    "silence": [np.zeros(n) for n in (1, 399, 16_000)],
    "dither": [np.round(RNG.random(16_000) - RNG.random(16_000)) / 32_768],
    "tones": [0.9 * np.sin(2 * np.pi * hertz * TIME) for hertz in (50, 440, 7900)],
    "quiet behind loud": [np.concatenate([0.3 * RNG.standard_normal(16_000), 1e-4 * RNG.standard_normal(32_000)])],
    "speech on an offset": [0.3 * synthetic_speech(4, seed=9) + 0.6],
    "a click": [np.eye(1, 32_000, 9000)[0]],
}


def apart(clips: list[np.ndarray], n_mels: int, **options: int) -> float:
    """The largest difference between both front ends, over clips that are made together."""
    clips = [clip.astype(np.float32) for clip in clips]
    host, device = LogMel(n_mels, **options), TorchLogMel(n_mels, CPU, **options)
    worst = 0.0
    for clip, found in zip(clips, device(clips), strict=True):
        want, frames = host([clip])
        assert found.shape == (n_mels, int(frames[0]))
        assert found.dtype == torch.float32
        worst = max(worst, float(np.abs(np.asarray(want)[0][:, : int(frames[0])] - found.numpy()).max()))
    return worst


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("name", list(SIGNALS))
def test_features_are_those_of_the_front_end_within_the_bound(name: str, n_mels: int) -> None:
    assert apart(SIGNALS[name], n_mels) <= BOUND


def test_short_clips_are_padded_alike() -> None:
    assert apart([synthetic_speech(seconds, seed=1) for seconds in (0.02, 0.3, 0.7)], 128, least_samples=8000) <= BOUND


def test_a_clip_does_not_depend_on_the_clips_beside_it() -> None:
    clips = [clip.astype(np.float32) for clip in SIGNALS["speech"]]
    device = TorchLogMel(80, CPU)
    for together, clip in zip(device(clips), clips, strict=True):
        torch.testing.assert_close(together, device([clip])[0], atol=1e-5, rtol=0)


def test_passes_are_bounded_and_hold_every_clip_once() -> None:
    device = TorchLogMel(80, CPU)
    lengths = [int(n) for n in np.random.default_rng(1).integers(1, 480_000, 200)]
    groups = list(device._groups(lengths))
    assert sorted(i for group in groups for i in group) == list(range(200))
    assert all(len(group) * (max(400, max(lengths[i] for i in group)) // 160) <= TOGETHER for group in groups)
    assert len(groups) < 40
