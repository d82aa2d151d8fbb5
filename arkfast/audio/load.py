"""``load``: a recording, or a stretch of it, as 16 kHz mono float32 samples.

Knows files, segments, channels and sampling rates, and every way in which a recording can be bad; knows no features and no manifests.
Decoding is libsndfile's (wav, flac, mp3, ogg and more), resampling soxr's high quality. Each error is an ``InputError`` that begins
with the recording's name: nothing is cut, padded or skipped in silence.
"""

from __future__ import annotations

import contextlib
import io
import math
import numbers
import os
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from arkfast.audio.container import missing_end, untagged_mp3_seconds
from arkfast.audio.reference import SAMPLING_RATE
from arkfast.records import InputError

if TYPE_CHECKING:
    import soundfile

MAX_CHANNELS = 8  # 7.1 surround; more is a multitrack session, whose sum is not a recording of one talker
END_TOLERANCE = 0.05  # seconds by which end_time may pass the recording's end: manifests round, and encoders pad
SHORTFALL = 0.1  # seconds that a decoder may stay under its header's length: two MP3 frames at 16 kHz and a codec's delay
_BLOCK = 1 << 16  # frames decoded at a time
_RATES = (1000, 1_000_000)  # Hz; outside it the header is wrong, and resampling would only multiply the damage

Source = str | os.PathLike[str] | bytes


def load(
    source: Source,
    *,
    begin: float | None = None,
    end: float | None = None,
    sampling_rate: int = SAMPLING_RATE,
    max_seconds: float | None = None,
    name: str | None = None,
) -> NDArray[np.float32]:
    """Decodes a recording to mono samples at one rate.

    A segment is read by seeking, then channels are averaged, then soxr's "HQ" resamples; n samples at rate r become
    ⌈n · sampling_rate / r⌉. Segment ends are rounded to the recording's own samples.

    Args:
        source: path, or the bytes of a whole file.
        begin: start of the segment in seconds; None or any negative number (−1 in manifests) is the recording's start.
        end: end of the segment in seconds; None or any negative number is the recording's end.
        sampling_rate: rate of the result in Hz.
        max_seconds: the longest stretch allowed; None allows any.
        name: what errors call the recording, e.g. a manifest's file and line; None is the path.

    Returns:
        [n] float32, n ≥ 1, finite, full scale at ±1.

    Raises:
        InputError: the file is missing, is not audio that libsndfile reads, is empty, holds NaN or infinity, has more than 8 channels or
            an absurd sampling rate; it is truncated: the decoder fails midway, stops 0.1 s or more short of both the header's length and
            what was asked for, or the container shows that its end is missing and the end was asked for; the segment is empty, not
            finite, starts past the end or ends more than 0.05 s past it; the stretch is longer than ``max_seconds``.
        TypeError: ``source`` is no path and no bytes.
        ImportError: soundfile or soxr is not installed.
    """
    if sampling_rate < 1:
        raise ValueError(f"load: sampling_rate must be positive, got {sampling_rate}")
    label = _label(source, name)
    begin, end = _segment(begin, end, label)
    with _open(source, label) as recording:
        rate, total = recording.samplerate, recording.frames
        _check_format(recording, label)
        seconds = total / rate
        if begin >= seconds:
            raise InputError(f"{label}: begin_time {begin:g} is past the recording's end at {seconds:g} s{_cut_note(recording, source)}")
        if end is not None and end > seconds + END_TOLERANCE:
            raise InputError(f"{label}: end_time {end:g} is past the recording's end at {seconds:g} s{_cut_note(recording, source)}")
        start = round(begin * rate)
        stop = total if end is None else min(round(end * rate), total)
        if stop <= start:
            raise InputError(f"{label}: the segment from {begin:g} to {(stop / rate):g} s holds no samples")
        if stop == total and (reason := _cut_reason(recording, source)):
            raise InputError(f"{label}: {reason}; or give an end_time before {seconds:g}")
        # One sample over the limit is enough to refuse, and headers are not to be trusted with the verdict.
        limit = None if max_seconds is None else math.floor(max_seconds * rate + 1e-6)
        wanted = stop - start if limit is None else min(stop - start, limit + 1)
        samples = _read_mono(recording, start, start + wanted, label)
        if limit is not None and len(samples) > limit:
            raise InputError(f"{label}: {(stop - start) / rate:g} s of audio, over the limit of {max_seconds:g} s: split it into segments")
        if wanted - len(samples) > SHORTFALL * rate:
            reached = (start + len(samples)) / rate
            if not _is_estimate(recording, source):
                raise InputError(f"{label}: truncated: the decoder stopped at {reached:g} s of the {seconds:g} s that the header announces")
            if end is not None:
                raise InputError(f"{label}: end_time {end:g} is past the recording's end at {reached:g} s")
    if not len(samples):
        raise InputError(f"{label}: no samples between {begin:g} and {stop / rate:g} s")
    if not (finite := np.isfinite(samples)).all():
        at = (start + int(np.argmin(finite))) / rate
        raise InputError(f"{label}: NaN or infinite sample at {at:.3f} s: the recording is damaged, export it again")
    return _resample(samples, rate, sampling_rate)


def duration(source: Source, *, name: str | None = None) -> float:
    """Length of a recording in seconds by its header, nothing decoded; an estimate for an MP3 without a length tag.

    Args:
        source: path, or the bytes of a whole file.
        name: what errors call the recording; None is the path.

    Raises:
        InputError: the file is missing, unreadable or empty, or has more than 8 channels or an absurd sampling rate.
        TypeError: ``source`` is no path and no bytes.
        ImportError: soundfile is not installed.
    """
    label = _label(source, name)
    with _open(source, label) as recording:
        _check_format(recording, label)
        return recording.frames / recording.samplerate


def _label(source: Source, name: str | None) -> str:
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        return path if name is None else f"{name}: {path}"
    if not isinstance(source, (bytes, bytearray, memoryview)):
        raise TypeError(f"load: expected a path or the bytes of a file, got {type(source).__name__}")
    return "audio bytes" if name is None else name


def _segment(begin: float | None, end: float | None, label: str) -> tuple[float, float | None]:
    """Start and end in seconds; an open start is 0, an open end None."""
    for field, value in (("begin_time", begin), ("end_time", end)):
        if value is not None and (not isinstance(value, numbers.Real) or not math.isfinite(value)):
            raise InputError(f"{label}: {field} must be a finite number of seconds or null, got {value!r}")
    begin = 0.0 if begin is None or begin < 0 else float(begin)
    end = None if end is None or end < 0 else float(end)
    if end is not None and begin >= end:
        relation = "is" if begin == end else "is past"
        raise InputError(f"{label}: begin_time {begin:g} {relation} end_time {end:g}: a segment must begin before it ends")
    return begin, end


def _soundfile() -> ModuleType:
    try:
        import soundfile
    except ModuleNotFoundError as error:
        raise ImportError("reading recordings needs soundfile: pip install 'arkfast[asr]'") from error
    return soundfile


def _soxr() -> ModuleType:
    try:
        import soxr
    except ModuleNotFoundError as error:
        raise ImportError("resampling needs soxr: pip install 'arkfast[asr]'") from error
    return soxr


@contextlib.contextmanager
def _bytes_of(source: Source) -> Iterator[BinaryIO]:
    with open(source, "rb") if isinstance(source, (str, os.PathLike)) else io.BytesIO(source) as stream:
        yield stream


def _open(source: Source, label: str) -> soundfile.SoundFile:
    sf = _soundfile()
    if isinstance(source, (str, os.PathLike)):
        if not os.path.exists(source):
            raise InputError(f"{label}: no such file")
        if not os.path.isfile(source):
            raise InputError(f"{label}: not a file")
        if not os.access(source, os.R_OK):
            raise InputError(f"{label}: no permission to read it")
        size = os.path.getsize(source)
    else:
        size = len(source)
    if size == 0:
        raise InputError(f"{label}: the file is empty")
    try:
        return sf.SoundFile(os.fspath(source) if isinstance(source, (str, os.PathLike)) else io.BytesIO(source))
    except (sf.SoundFileError, TypeError) as error:  # TypeError: headerless audio (.raw), which names no rate
        raise InputError(
            f"{label}: not audio that libsndfile can read (wav, flac, mp3, ogg, …), or damaged at its head; convert other formats, "
            "e.g. ffmpeg -i input -ac 1 -ar 16000 output.wav"
        ) from error


def _check_format(recording: soundfile.SoundFile, label: str) -> None:
    if recording.channels > MAX_CHANNELS:
        raise InputError(f"{label}: {recording.channels} channels, at most {MAX_CHANNELS} can be mixed down: extract the talker's channel")
    if not _RATES[0] <= recording.samplerate <= _RATES[1]:
        raise InputError(f"{label}: a sampling rate of {recording.samplerate} Hz is outside {_RATES[0]} to {_RATES[1]} Hz")
    if recording.frames == 0:
        raise InputError(f"{label}: the recording holds no samples")


def _is_estimate(recording: soundfile.SoundFile, source: Source) -> bool:
    """Whether the length is the decoder's guess: an MP3 without a length tag."""
    if recording.format != "MP3":
        return False
    with _bytes_of(source) as stream:
        return untagged_mp3_seconds(stream) is not None


def _cut_reason(recording: soundfile.SoundFile, source: Source) -> str | None:
    """Why reading to the decoder's end would miss part of the recording, or None."""
    seconds = recording.frames / recording.samplerate
    with _bytes_of(source) as stream:
        if recording.format != "MP3":
            reason = missing_end(stream, seconds)
            return None if reason is None else f"truncated: {reason}: get the whole file"
        true_seconds = untagged_mp3_seconds(stream)
    if true_seconds is not None and true_seconds > seconds + SHORTFALL:
        return f"this MP3 has no length tag, so of its {true_seconds:.2f} s the decoder reaches only {seconds:.2f}: re-encode it"
    return None


def _cut_note(recording: soundfile.SoundFile, source: Source) -> str:
    reason = _cut_reason(recording, source)
    return f"; {reason}" if reason else ""


def _read_mono(recording: soundfile.SoundFile, start: int, stop: int, label: str) -> NDArray[np.float32]:
    """Samples start..stop of the average of all channels, or as many as the decoder delivers."""
    sf = _soundfile()
    blocks, at = [], start
    block = np.empty((min(_BLOCK, stop - start), recording.channels), dtype=np.float32)
    try:
        if start:
            recording.seek(start)
        while at < stop:
            # A buffer of our own: soundfile would size its by the header.
            got = recording.read(out=block[: stop - at])
            if not len(got):
                break
            at += len(got)
            blocks.append(_downmix(got))
    except sf.SoundFileError as error:
        raise InputError(f"{label}: truncated or damaged: the decoder failed after {at / recording.samplerate:.2f} s ({error})") from error
    return np.concatenate(blocks) if blocks else np.empty(0, dtype=np.float32)


def _downmix(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """The average of the channels as a new array [n]; column by column, as np.mean over a short axis is slower than most decoders."""
    channels = block.shape[1]
    mono = block[:, 0] * np.float32(1 / channels)
    with np.errstate(invalid="ignore"):  # opposite infinities become NaN, and are reported as such
        for channel in range(1, channels):
            mono += block[:, channel] * np.float32(1 / channels)
    return mono


def _resample(samples: NDArray[np.float32], rate: int, target: int) -> NDArray[np.float32]:
    if rate == target:
        return samples
    resampled = _soxr().resample(samples, rate, target, quality="HQ")
    length = -(-len(samples) * target // rate)
    if len(resampled) < length:  # soxr rounds the length its own way
        return np.pad(resampled, (0, length - len(resampled)))
    return np.ascontiguousarray(resampled[:length])
