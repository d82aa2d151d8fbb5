"""Long stretches of noise, by name. How loud a noise is beside the speech is decided where it is mixed in."""

from __future__ import annotations

import random

import numpy as np

from arkfast.quickstart.speech import SAMPLE_RATE, Line, Synthesizer

KINDS = ("white", "pink", "brown", "babble", "hum")
"""White, pink (power ∝ 1/f), brown (∝ 1/f²), babble (eight people talking at once), hum (mains hum and a fan)."""

_SECONDS = 60
_POWER_SLOPES = {"white": 0.0, "pink": 1.0, "brown": 2.0}
_LOWEST_HZ = 20.0  # below it pink and brown stay flat: otherwise nearly all of brown's power would be a drift that nobody hears
_TALKERS = (
    *("en-us+steph3", "en-gb+Storm", "en-gb-scotland+antonio", "en-us+ian"),
    *("en-gb-x-rp+miguel", "en-us+benjamin", "en-gb+mike2", "en-us-nyc+announcer"),
)
_SMALL_TALK = (
    "have you seen the green umbrella that was standing by the door",
    "we missed the early train and had to wait for the next",
    "she said the garden looks better after the rain",
    "put the bread on the table and call the others in",
    "nobody told me that the meeting had been moved",
    "his brother keeps bees behind the old mill",
    "it was warm enough to leave the window open all night",
    "they are painting the kitchen yellow this time",
    "I would rather walk along the river than take the car",
    "the coffee is cold and the milk has gone sour",
)


def bed(kind: str, seed: str) -> np.ndarray:
    """A minute of noise, the same for the same arguments.

    Args:
        kind: one of ``KINDS``.
        seed: any string.

    Returns:
        float32 [960000] at 16 kHz with mean square 1. It wraps around without a click, except babble, which may cut a word there.
    """
    assert kind in KINDS, kind
    generator = np.random.default_rng(random.Random(f"{seed} {kind}").getrandbits(64))
    length = _SECONDS * SAMPLE_RATE
    if kind == "babble":
        samples = _babble(length, f"{seed} {kind}")
    elif kind == "hum":
        samples = _hum(length, generator)
    else:
        samples = _shaped(length, generator, np.maximum(_frequencies(length), _LOWEST_HZ) ** (-_POWER_SLOPES[kind] / 2))
    samples -= samples.mean()
    return (samples / np.sqrt(np.mean(samples**2))).astype(np.float32)


def _frequencies(length: int) -> np.ndarray:
    return np.fft.rfftfreq(length, 1 / SAMPLE_RATE)


def _shaped(length: int, generator: np.random.Generator, gain: np.ndarray) -> np.ndarray:
    """White noise filtered by a gain over ``_frequencies(length)``; periodic in ``length``."""
    return np.fft.irfft(np.fft.rfft(generator.standard_normal(length)) * gain, length)


def _hum(length: int, generator: np.random.Generator) -> np.ndarray:
    """Harmonics of 50 Hz falling with their number, and noise between 300 and 1200 Hz, of equal power."""
    t = np.arange(length) / SAMPLE_RATE
    tones = sum(np.sin(2 * np.pi * (50 * k * t + generator.random())) / k for k in range(1, 21))
    frequencies = _frequencies(length)
    fan = _shaped(length, generator, ((frequencies > 300) & (frequencies < 1200)).astype(float))
    return tones / np.std(tones) + fan / np.std(fan)


def _babble(length: int, seed: str) -> np.ndarray:
    """Eight voices of equal power, each saying its sentences without a break; none of them is a digit."""
    draw = random.Random(seed)
    synthesizer = Synthesizer()
    total = np.zeros(length)
    for talker in _TALKERS:
        lines = [Line(sentence, talker, draw.randint(150, 200), draw.randint(35, 65)) for sentence in _SMALL_TALK]
        spoken = synthesizer.speak_lines(lines)
        stream: list[np.ndarray] = []
        while sum(map(len, stream)) < length:
            stream += draw.sample(spoken, len(spoken))
        voice = np.concatenate(stream)[:length]
        total += voice / np.std(voice)
    return total
