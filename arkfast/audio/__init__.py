"""From a recording to features: ``load`` decodes, cuts and resamples to 16 kHz mono; ``LogMel`` turns samples into log-mel features.

Importing this package loads neither torch nor a decoder.
"""

from arkfast.audio.load import Extent, Loaded, Reading, duration, extent, load, read, reading
from arkfast.audio.log_mel import LogMel
from arkfast.audio.reference import HOP_LENGTH, SAMPLING_RATE
from arkfast.audio.stream import LogMelStream

__all__ = [
    "HOP_LENGTH",
    "SAMPLING_RATE",
    "Extent",
    "Loaded",
    "LogMel",
    "LogMelStream",
    "Reading",
    "duration",
    "extent",
    "load",
    "read",
    "reading",
]
