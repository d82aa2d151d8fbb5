"""Signals for the audio tests, made here from fixed seeds."""

from collections.abc import Callable

import numpy as np
import pytest

Signal = Callable[[int], np.ndarray]


def speech_like(n: int, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """n samples of voiced bursts with pauses: harmonics of a gliding pitch under a falling spectrum, breath noise, a quiet floor."""
    rng = np.random.default_rng(seed)
    t = np.arange(n) / rate
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    voiced = sum(np.sin(k * phase + k) / k**1.2 for k in range(1, 25))
    syllables = np.clip(np.sin(2 * np.pi * 2.3 * t), 0, 1) ** 2
    samples = 0.15 * syllables * voiced + 0.01 * syllables * rng.standard_normal(n) + 1e-4 * rng.standard_normal(n)
    return samples.astype(np.float32)


def chirp(n: int) -> np.ndarray:
    t = np.arange(n) / 16000
    return (0.5 * np.sin(2 * np.pi * (50 * t + 7900 * t**2 * 16000 / (2 * n)))).astype(np.float32)


def noise(n: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(7).standard_normal(n)).astype(np.float32)


def silence(n: int) -> np.ndarray:
    return np.zeros(n, dtype=np.float32)


def click_at_end(n: int) -> np.ndarray:
    """Quiet, then loud in the last 20 samples: the maximum, and with it the clamp, hangs on how the end is framed."""
    samples = 1e-3 * noise(n)
    samples[-20:] += np.float32(0.9)
    return samples


SIGNALS: dict[str, Signal] = {"speech": speech_like, "chirp": chirp, "noise": noise, "silence": silence, "click": click_at_end}


@pytest.fixture(params=SIGNALS)
def signal(request: pytest.FixtureRequest) -> Signal:
    return SIGNALS[request.param]


@pytest.fixture(scope="session")
def speech() -> Signal:
    return speech_like
