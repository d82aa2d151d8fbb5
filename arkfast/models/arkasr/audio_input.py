"""What a caller may give as audio, brought to one form: 16 kHz mono float32 samples, and what is doubtful about them.

Files go through ``arkfast.audio.read``. Samples in memory are mixed, cut, judged and resampled here by the same rules.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from arkfast import audio
from arkfast.audio import Loaded
from arkfast.audio.channels import Channel, Mixer, check_channel, check_track, chosen, parse_channel, written_channel
from arkfast.audio.levels import judge
from arkfast.audio.limits import MAX_CHANNELS, check_format
from arkfast.audio.load import Used
from arkfast.audio.segment import cut_samples
from arkfast.audio.waveform import as_array, as_samples
from arkfast.records import InputError, JsonRow

SAMPLING_RATE = 16_000  # Hz, what the encoder was trained on
KEYS = ("array", "raw", "bytes", "path")
"""Under which a mapping may hold audio; of several the first that is not None is read."""
SETTINGS = ("sampling_rate", "begin_time", "end_time", "channel", "audio_track")
"""What a mapping may say of its audio besides."""


@runtime_checkable
class OpenFile(Protocol):
    """Whatever has bytes to read, such as ``io.BytesIO``."""

    def read(self) -> object:
        """What is there from where it stands."""
        ...


@runtime_checkable
class DecodedSamples(Protocol):
    """``AudioSamples`` of torchcodec, which need not be installed."""

    data: object
    """[channels, samples]."""
    sample_rate: object
    """In Hz."""


@runtime_checkable
class Decoder(Protocol):
    """``AudioDecoder`` of torchcodec, and of ``datasets``, which gives one for each row."""

    def get_all_samples(self) -> DecodedSamples:
        """The whole track."""
        ...


def read_input(
    source: object,
    *,
    sampling_rate: int = SAMPLING_RATE,
    begin: float | None = None,
    end: float | None = None,
    channel: Channel = None,
    audio_track: int | None = None,
    where: str | None = None,
) -> Loaded:
    """Samples of a recording or of a segment of it, at 16 kHz.

    Args:
        source: a path; the bytes of an audio file, or an open file that has them; samples [n] or [channels, n] as an array, a tensor of any
            device and float type, or a list (floats in −1..1, or int16); torchcodec's ``AudioDecoder`` or its samples.
        sampling_rate: of samples, in Hz; a file and a decoder know their own.
        begin: start of the segment in seconds; None or any negative number is the start.
        end: end of the segment in seconds, at most 0.05 s past the recording's; None or any negative number is the end.
        channel: which channel is heard, from 0, or several whose average is; None is the average of all.
        audio_track: which audio track of a container, from 0; None is the first.
        where: what an error's message begins with, besides the path.

    Raises:
        InputError: the source cannot be used, or has no such segment, channel or track.
    """
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise InputError(f"{where or 'audio'}: {source} is an address; download it and give the file's path")
    if isinstance(source, OpenFile):
        source = _content(source, where or "audio")
    elif isinstance(source, os.PathLike):
        source = os.fsdecode(source)
    elif isinstance(source, (bytearray, memoryview)):
        source = bytes(source)
    if not isinstance(source, (str, bytes)):
        return _samples(source, sampling_rate, begin, end, chosen(channel), audio_track, where or "audio array")
    return audio.read(source, begin=begin, end=end, channel=channel, audio_track=audio_track, name=where)


def read_mapping(given: JsonRow, where: str) -> Loaded:
    """Audio given as a mapping, such as a row of Hugging Face's ``datasets``.

    Args:
        given: one of ``array`` or ``raw`` (with ``sampling_rate``), ``bytes`` (whose ``path`` is then a name and no file) and ``path``; and
            perhaps ``begin_time``, ``end_time``, ``channel`` and ``audio_track``.
        where: what errors call it.

    Raises:
        InputError: there is no audio in it, or none that can be used.
    """
    key = next((key for key in KEYS if given.get(key) is not None), None)
    if key is None:
        hint = "; pass the column itself" if isinstance(given.get("audio"), Mapping) else ""
        raise InputError(
            f"{where}: audio given as a mapping needs 'array' (or 'raw') and 'sampling_rate', 'bytes', or 'path'; "
            f"got {sorted(map(str, given))}{hint}"
        )
    in_memory = key in ("array", "raw")
    if in_memory and given.get("sampling_rate") is None:
        raise InputError(f"{where}: audio given as an array needs its 'sampling_rate' in Hz")
    name = given.get("path") if key == "bytes" else None
    try:
        channel = parse_channel(given.get("channel"))
    except ValueError as error:
        raise InputError(f"{where}: 'channel': {error}, got {given['channel']!r}") from error
    return read_input(
        given[key],
        sampling_rate=hertz(given["sampling_rate"], where) if in_memory else SAMPLING_RATE,
        begin=seconds(given.get("begin_time"), where),
        end=seconds(given.get("end_time"), where),
        channel=channel,
        audio_track=_track(given.get("audio_track"), where),
        where=f"{where}: {name}" if name else where,
    )


def resample(samples: NDArray[np.float32], sampling_rate: int) -> NDArray[np.float32]:
    """float32 [samples] at ``sampling_rate`` Hz → at 16 kHz, by the resampler that files go through (soxr, HQ)."""
    if sampling_rate == SAMPLING_RATE:
        return samples
    import soxr

    return np.asarray(soxr.resample(samples, sampling_rate, SAMPLING_RATE, quality="HQ"), dtype=np.float32)


def seconds(value: object, where: str) -> float | None:
    """A time of a request in seconds; None and negative numbers (the published convention is −1) mean "not given"."""
    if value is None:
        return None
    try:
        if not isinstance(value, (str, numbers.Real)):
            raise TypeError("no number")
        time = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where}: a time must be a number of seconds, got {value!r}") from None
    return None if time < 0 else time


def hertz(value: object, where: str) -> int:
    """A sampling rate.

    Raises:
        InputError: it is no whole number, or none that a recording has.
    """
    number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    if not number.is_integer():
        raise InputError(f"{where}: 'sampling_rate' must be a whole number of Hz, got {value!r}")
    check_format(where, 1, int(number), MAX_CHANNELS)
    return int(number)


def _track(value: object, where: str) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise InputError(f"{where}: 'audio_track' must be an audio track's number from 0, got {value!r}")


def _content(source: OpenFile, where: str) -> bytes:
    """The bytes of an open file from where it stands."""
    content = source.read()
    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise InputError(f"{where}: the open file gives {type(content).__name__} and no bytes: open it in binary mode")
    if not len(content):
        raise InputError(f"{where}: the open file has no bytes where it stands: go back to its start with seek(0), or give its path")
    return bytes(content)


def _samples(
    source: object,
    sampling_rate: int,
    begin: float | None,
    end: float | None,
    channels: tuple[int, ...],
    audio_track: int | None,
    where: str,
) -> Loaded:
    """See ``read_input``, for samples in memory."""
    if isinstance(source, Decoder):
        source = source.get_all_samples()
    if isinstance(source, DecodedSamples):
        sampling_rate = hertz(source.sample_rate, where)
        source = source.data
    try:
        given = as_array(source)
    except ValueError as error:  # lists of unequal lengths
        raise InputError(f"{where}: cannot be taken for samples ({error}); give one array") from error
    if given.ndim == 2 and given.shape[1] == 1:
        given = given.T  # samples first, one channel: there is no other reading
    if given.ndim not in (1, 2) or not given.size or (given.ndim == 2 and given.shape[0] > min(MAX_CHANNELS, given.shape[1])):
        raise InputError(
            f"{where}: expected a path, bytes, a one-dimensional array of samples or one of [channels, samples], got "
            f"{type(source).__name__} of shape {list(given.shape)}; transpose samples that come first, mix channels down"
        )
    if given.dtype != np.int16 and given.dtype.kind != "f":
        raise InputError(f"{where}: samples must be floats in -1..1 or int16, got {given.dtype}; convert and scale them")
    rows = given[None] if given.ndim == 1 else given
    check_channel(where, channels, len(rows))
    check_track(where, audio_track or 0, 1)
    if begin is not None or end is not None:
        label = f"{where}: segment {begin or 0:g} to {'its end' if end is None else f'{end:g} s'}"
        rows = np.stack([cut_samples(row, begin, end, max_seconds=None, label=label, sampling_rate=sampling_rate) for row in rows])
    mixer = Mixer(channels)
    samples = mixer.mix(np.stack([as_samples(where, row) for row in rows], axis=1))
    doubts = judge(where, mixer, len(samples) / sampling_rate)
    used: Used = {"channel": written_channel(channels), "channels": len(rows)} if len(rows) > 1 else {}
    return Loaded(resample(samples, sampling_rate), doubts, used)
