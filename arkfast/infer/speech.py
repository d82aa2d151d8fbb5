"""Whether a clip holds speech, by its features and by what the model made of it: the mark of a transcript that may have come from nothing.

The front end's evidence is how much the level of a clip moves. Silence, noise and hum keep theirs, and speech cannot.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from arkfast.records import JsonRow

NoSpeech = Literal["skip", "mark", "keep"]
"""What becomes of a transcript of a clip without speech: it is left out, or says so, or nothing is judged."""
NO_SPEECH: tuple[NoSpeech, ...] = get_args(NoSpeech)
THRESHOLD = 0.6
"""A clip with this probability or more counts as one without speech; OpenAI's ``no_speech_threshold``."""
STILL_DB, STEEP_DB = 2.0, 0.25
"""A clip whose level moves by 2 dB is as likely to hold speech as not, and by 0.25 dB more or less the odds change by e. Ten seconds of
white and pink noise, dither and hum moved by up to 1.3 dB, recordings of speech by 21 to 43, and in noise 5 dB louder than them by 3 to 5
(``docs/inference.md``)."""
BLOCK = 5
"""Frames whose mean level counts, so that neither the phase of a hum nor the chance of a single frame moves it."""
EDGE = 3
"""Frames at either end that are left out where a clip has enough of them: they hold the reflection of its ends."""
DOUBTFUL_LOGPROB, DOUBTFUL_COMPRESSION = -1.0, 2.4
"""A transcript below the one or above the other is doubtful; OpenAI's thresholds for Whisper."""


def movement(level: NDArray[np.float64]) -> float:
    """By how many decibels a clip's loudest tenth of a second is above its quiet tenth.

    Args:
        level: [T] decibels of each frame.
    """
    if len(level) >= 2 * EDGE + 4 * BLOCK:
        level = level[EDGE:-EDGE]
    if len(level) >= 2 * BLOCK:
        level = level[: len(level) // BLOCK * BLOCK].reshape(-1, BLOCK).mean(axis=1)
    ordered = np.sort(level)
    return float(ordered[-2:].mean() - np.quantile(ordered, 0.1))


def silence_in(features: NDArray[np.float32]) -> float:
    """The probability that a clip holds no speech, by its features [n_mels, T] alone.

    Args:
        features: float32 log-mel. The mean over the filters is the level, so that no single one decides.
    """
    return silence_at(features.mean(axis=0, dtype=np.float64))


def silence_at(means: NDArray[np.floating]) -> float:
    """``silence_in`` features, of which the mean over the filters is known of each frame.

    Args:
        means: [T] in Whisper's scale, of which 1 is 40 dB.
    """
    return 1.0 / (1.0 + math.exp(min((movement(40.0 * means.astype(np.float64)) - STILL_DB) / STEEP_DB, 700.0)))


def no_speech_prob(front: float, *, ended_at_once: float | None, scores: JsonRow) -> float:
    """The probability that a clip holds no speech, by all that is known. Either judge alone can say so.

    Args:
        front: ``silence_in`` its features.
        ended_at_once: the model's probability of a transcript without a token; None where it was not asked.
        scores: ``avg_logprob`` and ``compression_ratio`` of the transcript, as far as they are known. A doubtful transcript lets the front
            end's evidence weigh more, as its square root.
    """
    logprob, ratio = scores.get("avg_logprob"), scores.get("compression_ratio")
    doubtful = (logprob is not None and logprob < DOUBTFUL_LOGPROB) or (ratio is not None and ratio > DOUBTFUL_COMPRESSION)
    heard = 1.0 - (math.sqrt(front) if doubtful else front)
    return 1.0 - heard * (1.0 - (ended_at_once or 0.0))
