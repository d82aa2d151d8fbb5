"""Whether a clip's levels can be those of speech: channels that cancel, samples without a scale, silence, next to no samples.

What makes a transcript doubtful is a warning. What leaves nothing to be heard of a recording that has something, or gives it a loudness
that nothing has, is an error. The rules hold alike for files and for samples in memory.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from arkfast.audio.channels import Mixer
from arkfast.records import InputError

SHORT_SECONDS = 0.1
"""A shorter clip holds no word."""
QUIET_PEAK = 1e-4
"""Full scale is 1; below −80 dB of it are three steps of 16 bits, which is dither and no speech."""
LOUD_PEAK = 4.0
"""12 dB over full scale; decoders of lossy formats and mixes of channels stay below."""
UNSCALED_PEAK = 256.0
"""48 dB over full scale. Nothing is recorded so, while integers stored as floats reach it: 16 bits of speech peak in the thousands."""
FAINT_MIX = 1e-2
"""Energy of a mix over the mean energy of its channels, −20 dB. Channels that have nothing in common give 1 over their number, 1/8 at
least, and so does one channel beside silent ones."""
CANCELLED_MIX = 1e-6
"""−60 dB; what remains is the rounding of the samples, or the errors of a lossy format."""


def judge(label: str, mixer: Mixer, seconds: float) -> tuple[str, ...]:
    """What is doubtful about a clip by its levels and its length.

    Args:
        label: what errors call the clip.
        mixer: has seen all of its samples.
        seconds: its length.

    Returns:
        A sentence for each doubt.

    Raises:
        InputError: the samples have no scale, or the channels cancel one another.
    """
    peak = mixer.peak
    if UNSCALED_PEAK <= peak < math.inf:
        raise InputError(
            f"{label}: samples reach {peak:.6g} and full scale is 1: these are integers stored as floats; divide them by their own full "
            "scale (32768 for 16 bits)"
        )
    if not math.isfinite(mixer.energy):  # what is not finite is told by whoever makes features
        return ()
    share = mixer.energy / mixer.heard_energy if mixer.heard_energy > 0 else 1.0
    if share < CANCELLED_MIX:
        raise InputError(
            f"{label}: the channels cancel one another and their average is silent: choose one of them, with the field channel of its row "
            "or with --channel"
        )
    found = []
    if share < FAINT_MIX:
        found.append(
            f"the average of the channels has {100 * share:.2g} % of their energy, since they nearly cancel one another: choose one of them"
        )
    if peak > LOUD_PEAK:
        found.append(f"samples reach {peak:.3g} and full scale is 1: are they scaled?")
    if peak == 0:
        found.append("digital silence: every sample is 0")
    elif peak < QUIET_PEAK:
        found.append(f"next to silence: samples reach {peak:.1g} and full scale is 1")
    if seconds < SHORT_SECONDS:
        found.append(f"a clip of {seconds:.3f} s is too short for a word")
    return tuple(found)


def doubts(label: str, samples: NDArray[np.float32], sampling_rate: int) -> tuple[str, ...]:
    """``judge`` for samples in memory.

    Args:
        label: what errors call them.
        samples: float32 [n]; what is not finite is left to whoever makes features of them.
        sampling_rate: in Hz.

    Raises:
        InputError: as ``judge``.
    """
    mixer = Mixer()
    mixer.mix(samples[:, None])
    return judge(label, mixer, len(samples) / sampling_rate)
