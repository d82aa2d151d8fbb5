"""``load``: a recording, or a stretch of it, as 16 kHz mono float32 samples.

Which library reads a file is decided in ``opening``. Nothing is cut, padded or skipped in silence: an ``InputError`` begins with the
recording's name and says

=========================================================  ==============================================================
what is wrong                                              the message contains
=========================================================  ==============================================================
no file; a dangling symbolic link                          no such file
a folder, pipe, socket or device (never opened)            not a regular file
zero bytes; a header without samples                       the file is empty; the recording holds no samples
text, a web page, random bytes, whatever the extension     not audio: … and what the first bytes look like
what PyAV alone reads, where it is not installed           needs PyAV: pip install -e '.[containers]' (in a …
a video without sound                                      no audio track in it
a head that no decoder takes                               damaged at its head
cut wav, rf64, w64, aiff, au, caf, NIST, m4a, webm         truncated: its header announces … bytes and it has …
cut ogg                                                    truncated: its last Ogg page is not whole
an ogg without the mark of its end, on demand              truncated: its last Ogg page does not mark the end
damaged or missing pages of an ogg; a chained ogg          damaged: the Ogg page at byte … (and the like)
cut flac, wma, aac; bytes damaged behind a good header     truncated or damaged: the decoder failed … s
a header that announces more than there is                 truncated: the decoder stopped at … s of the … s
cut mp3 with a length tag                                  truncated: its length tag announces … s and its frames
MP3s joined into one; frames behind the tag's end          its length tag ends it at … s and its frames go on
MP3s of different rates joined into one                    damaged: the sampling rate or the number of channels
files of another kind joined into one                      another recording is joined to it
a wav or its kin whose header ends it early                its header ends it at byte …, and … bytes follow
an mp4 or mkv whose header ends it early                   and its packets go on; … s are in it
a flac whose last frame ends not where its header says     damaged: its header announces … s and its last frame
an MP2 with variable bit rate                              no length tag … re-encode it
a headerless file that is not what its suffix says         not audio; truncated: … comes in frames of … bytes
timestamps that jump within a webm or mp4                  damaged or recorded with pauses
NaN or infinity in floating-point samples                  NaN or infinite sample at … s
9 channels or more (up to 8 are averaged) and no choice    9 channels, at most 8
a channel or an audio track that is not there              there is no channel …; there is no audio track …
channels whose average is silent while they are not        the channels cancel one another
integers stored as floats: samples of 256 and more         samples reach … and full scale is 1
a sampling rate outside 1 kHz to 1 MHz                     a sampling rate of … Hz is outside
over 4 GiB, or over ``max_bytes``                          bytes, over the limit
over 6 hours, or over ``max_seconds``                      s of audio, over the limit
a segment outside the recording, or empty                  begin_time …; end_time …; holds no samples
=========================================================  ==============================================================

What cannot be told: a raw aac, amr, ts or headerless file, or a live webm or mp4 (one without lengths), that ends between two frames is
taken for whole; an MP3 may lose a frame or two within (0.1 s in all); damaged bytes of plain PCM are samples like any others. W64 and NIST
files are read to their end whatever their header says, and an mp4 as its edit list says. Chunks of metadata, tags, zeros and less than
0.1 s behind a header's end pass.

What is read all the same is a warning in ``Loaded``: an ogg without the mark of its end, a header that was never finished, other bytes
between MP3 frames, a file without a header that is known by its suffix alone, and what ``levels`` says of the samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from arkfast.audio.channels import AVERAGE, Channel, Mixer, chosen
from arkfast.audio.levels import judge
from arkfast.audio.limits import MAX_BYTES, MAX_CHANNELS, MAX_SECONDS, check_options, most_samples
from arkfast.audio.opening import Recording, open_recording
from arkfast.audio.reference import SAMPLING_RATE
from arkfast.audio.resample import Resampler
from arkfast.audio.segment import END_TOLERANCE, check_samples, open_end, outside, segment_times, too_long
from arkfast.audio.sndfile import SndfileRecording
from arkfast.audio.source import Source, locate
from arkfast.records import InputError, OnTruncated

SURPLUS_SECONDS = 0.5  # more than encoders fill up or headers round: 0.4 s of AAC at 8 kHz
Used = Mapping[str, int | str | list[int]]
NOTHING_CHOSEN: Used = {}


class Loaded(NamedTuple):
    """Samples, and what a reader of the transcript should know of the recording."""

    samples: NDArray[np.float32]
    """[n] float32, n ≥ 1, finite, full scale at ±1."""
    warnings: tuple[str, ...] = ()
    """A sentence for each thing about the recording that is doubtful and no error, without the recording's name."""
    used: Used = NOTHING_CHOSEN
    """What was heard of a recording that has more than that: ``channel`` (a number, a list of them, or ``average``) of ``channels``, and
    ``audio_track`` of ``audio_tracks``; numbers count from 0. Empty where there was one of each."""


def load(
    source: Source,
    *,
    begin: float | None = None,
    end: float | None = None,
    channel: Channel = None,
    audio_track: int | None = None,
    sampling_rate: int = SAMPLING_RATE,
    max_seconds: float | None = MAX_SECONDS,
    max_bytes: int | None = MAX_BYTES,
    max_channels: int = MAX_CHANNELS,
    on_truncated: OnTruncated = "warn",
    name: str | None = None,
) -> NDArray[np.float32]:
    """Decodes a recording to mono samples at one rate.

    Channels are averaged or chosen, then soxr's "HQ" resamples; n samples at rate r become ⌈n · sampling_rate / r⌉. Segment ends are
    rounded to the recording's own samples. In libsndfile's formats a segment is read by seeking; in PyAV's by decoding from the start,
    which is exact and costs what lies before it. Memory is that of the result plus blocks: a header's length is believed only where it
    says stop.

    Args:
        source: path, or the bytes of a whole file.
        begin: start of the segment in seconds; None or any negative number (−1 in manifests) is the recording's start.
        end: end of the segment in seconds; None or any negative number is the recording's end.
        channel: which channel is heard, from 0, or several whose average is; None (or none of them) is the average of all.
        audio_track: which audio track of a container such as mp4 or mkv, from 0; None is the first.
        sampling_rate: rate of the result in Hz.
        max_seconds: the longest stretch allowed; None allows any. Refused before decoding where the header tells, else while decoding.
        max_bytes: the largest file allowed; None allows any.
        max_channels: the most channels that are mixed down.
        on_truncated: what becomes of an Ogg file whose last page is whole and does not mark the end, as some encoders leave it and as a
            broken download may: ``warn`` reads it, ``fail`` refuses it. Every other truncated file is refused.
        name: what errors call the recording, e.g. a manifest's file and line; None is the path. Of bytes, its suffix says how they are
            coded where they have no header.

    Returns:
        [n] float32, n ≥ 1, finite, full scale at ±1.

    Raises:
        InputError: the recording cannot be had whole and sound, or passes a limit: the table above.
        ValueError: an option is out of range.
        TypeError: ``source`` is no path and no bytes.
        ImportError: soundfile or soxr is not installed.
    """
    return read(
        source,
        begin=begin,
        end=end,
        channel=channel,
        audio_track=audio_track,
        sampling_rate=sampling_rate,
        max_seconds=max_seconds,
        max_bytes=max_bytes,
        max_channels=max_channels,
        on_truncated=on_truncated,
        name=name,
    ).samples


def read(
    source: Source,
    *,
    begin: float | None = None,
    end: float | None = None,
    channel: Channel = None,
    audio_track: int | None = None,
    sampling_rate: int = SAMPLING_RATE,
    max_seconds: float | None = MAX_SECONDS,
    max_bytes: int | None = MAX_BYTES,
    max_channels: int = MAX_CHANNELS,
    on_truncated: OnTruncated = "warn",
    name: str | None = None,
) -> Loaded:
    """``load``, and beside the samples whatever is doubtful about the recording.

    Args:
        source, begin, end, channel, audio_track, sampling_rate, max_seconds, max_bytes, max_channels, on_truncated, name: as for
            ``load``.

    Raises:
        InputError, ValueError, TypeError, ImportError: as ``load``.
    """
    if sampling_rate < 1:
        raise ValueError(f"load: sampling_rate must be positive, got {sampling_rate}")
    check_options(max_seconds, max_bytes, max_channels)
    found = locate(source, name, max_bytes)
    begin, end = segment_times(begin, end, found.label)
    picked = chosen(channel)
    with open_recording(found, max_channels, picked, audio_track, on_truncated == "fail") as recording:
        start, stop = _stretch(recording, begin, end, max_seconds, found.label)
        mixer = Mixer(picked)
        samples = np.concatenate(list(_pieces(recording, start, stop, end, max_seconds, sampling_rate, mixer, found.label)))
        doubts = judge(found.label, mixer, len(samples) / sampling_rate)
        return Loaded(samples, (*recording.sound.doubts, *doubts), _used(recording, picked, audio_track))


class Reading:
    """A recording that is being read from its begin to its end, in constant memory.

    Attributes:
        seconds: length of the recording by its header; None where only decoding tells.
        seeks: whether a segment of it can be read on its own at its own cost, without decoding what lies before it.
        used: as ``Loaded.used``.
    """

    def __init__(self, recording: Recording, pieces: Iterator[NDArray[np.float32]], mixer: Mixer, used: Used, label: str) -> None:
        self.seconds = None if recording.frames is None else recording.frames / recording.rate
        self.seeks = isinstance(recording, SndfileRecording)
        self.used = used
        self._recording, self._pieces, self._mixer, self._label, self._read = recording, pieces, mixer, label, 0

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """The samples that ``load`` would give, float32 at 16 kHz, in pieces of any length.

        Raises:
            InputError: as ``load``, when the place is reached.
        """
        for piece in self._pieces:
            self._read += len(piece)
            yield piece

    def warnings(self) -> tuple[str, ...]:
        """As ``Loaded.warnings``, of what was read.

        Raises:
            InputError: the levels make no sense, as in ``load``.
        """
        return (*self._recording.sound.doubts, *judge(self._label, self._mixer, self._read / SAMPLING_RATE))


@contextmanager
def reading(
    source: Source,
    *,
    begin: float | None = None,
    end: float | None = None,
    channel: Channel = None,
    audio_track: int | None = None,
    on_truncated: OnTruncated = "warn",
    name: str | None = None,
) -> Iterator[Reading]:
    """``read`` for recordings that are too long to be held: yields a ``Reading`` that gives the samples piece by piece.

    Args:
        source, begin, end, channel, audio_track, on_truncated, name: as for ``load``. There is no limit of length.

    Raises:
        InputError, TypeError, ImportError: as ``load``.
    """
    found = locate(source, name, MAX_BYTES)
    begin, end = segment_times(begin, end, found.label)
    picked = chosen(channel)
    with open_recording(found, MAX_CHANNELS, picked, audio_track, on_truncated == "fail") as recording:
        start, stop = _stretch(recording, begin, end, None, found.label)
        mixer = Mixer(picked)
        pieces = _pieces(recording, start, stop, end, None, SAMPLING_RATE, mixer, found.label)
        yield Reading(recording, pieces, mixer, _used(recording, picked, audio_track), found.label)


def _used(recording: Recording, channels: Sequence[int], audio_track: int | None) -> Used:
    """See ``Loaded.used``."""
    used: dict[str, int | str | list[int]] = {}
    if recording.channels > 1:
        used["channel"] = AVERAGE if not channels else channels[0] if len(channels) == 1 else list(channels)
        used["channels"] = recording.channels
    if recording.tracks > 1:
        used |= {"audio_track": audio_track or 0, "audio_tracks": recording.tracks}
    return used


def duration(
    source: Source,
    *,
    channel: Channel = None,
    audio_track: int | None = None,
    max_bytes: int | None = MAX_BYTES,
    max_channels: int = MAX_CHANNELS,
    name: str | None = None,
) -> float:
    """Length of a recording in seconds by its header, or by walking its packets where there is none; decodes at most one frame.

    Args:
        source: path, or the bytes of a whole file.
        channel, audio_track: as for ``load``.
        max_bytes: as for ``load``.
        max_channels: as for ``load``.
        name: what errors call the recording; None is the path.

    Raises:
        InputError: the file is missing, unreadable or empty, has too many bytes or channels or an absurd sampling rate, or is damaged where
            that shows without decoding.
        TypeError: ``source`` is no path and no bytes.
        ImportError: soundfile is not installed.
    """
    with open_recording(locate(source, name, max_bytes), max_channels, chosen(channel), audio_track, False) as recording:
        return recording.seconds


class Extent(NamedTuple):
    """What can be said of a recording's length without decoding it."""

    seconds: float
    """Length of what is there."""
    cut: str | None = None
    """Why its end is missing, as a clause for a message; None where nothing shows that."""
    channels: int = 1
    """How many it has."""
    strict_cut: str | None = None
    """``cut``, also for an Ogg file that is refused only where ``on_truncated`` is ``fail``."""


def extent(
    source: Source,
    *,
    channel: Channel = None,
    audio_track: int | None = None,
    max_bytes: int | None = MAX_BYTES,
    max_channels: int = MAX_CHANNELS,
    name: str | None = None,
) -> Extent:
    """``duration``, and whether ``load`` would refuse the recording as truncated when it is asked for to its end.

    Args:
        source, channel, audio_track, max_bytes, max_channels, name: as for ``duration``.

    Raises:
        InputError, TypeError, ImportError: as ``duration``.
    """
    with open_recording(locate(source, name, max_bytes), max_channels, chosen(channel), audio_track, False) as recording:
        reached = recording.seconds
        if recording.cut is not None and recording.frames is not None:
            reached = min(reached, recording.frames / recording.rate)
        return Extent(reached, recording.cut, recording.channels, recording.cut or recording.sound.unmarked)


def _stretch(recording: Recording, begin: float, end: float | None, max_seconds: float | None, label: str) -> tuple[int, int | None]:
    """The segment in samples of the recording, its end None where only decoding can tell; all that the header shows wrong is refused."""
    rate, total = recording.rate, recording.frames
    start = round(begin * rate)
    stop = recording.stop if end is None else round(end * rate)
    if total is not None:
        if reason := outside(begin, end, total / rate):
            raise InputError(f"{label}: {reason}" + (f"; {recording.cut}" if recording.cut else ""))
        if stop is not None and recording.stop is not None:
            stop = min(stop, recording.stop)
    if stop is not None:
        check_samples(begin, start, stop, rate, label)
    if (end is None or stop == total) and recording.cut:
        raise InputError(f"{label}: {open_end(recording.cut, None if total is None else min(total / rate, recording.seconds))}")
    most, last = most_samples(max_seconds, rate), total if stop is None else stop
    if most is not None and last is not None:
        doubt = recording.slack * rate if recording.stop is None and end is None else 0
        if last - start > most + doubt and recording.exact:
            raise too_long(label, (last - start) / rate, max_seconds)
    return start, stop


def _pieces(
    recording: Recording,
    start: int,
    stop: int | None,
    end: float | None,
    max_seconds: float | None,
    sampling_rate: int,
    mixer: Mixer,
    label: str,
) -> Iterator[NDArray[np.float32]]:
    """Decodes, mixes, checks and resamples, a piece at a time; what the header could not tell is refused here."""
    rate, total = recording.rate, recording.frames
    most, last = most_samples(max_seconds, rate), total if stop is None else stop
    # One sample over the limit is enough to refuse, whatever the header says.
    bound = stop if most is None else start + most + 1 if stop is None else min(stop, start + most + 1)
    result = Resampler(rate, sampling_rate)
    for channels in recording.blocks(start, bound):
        block = mixer.mix(channels)
        if not (finite := np.isfinite(block)).all():
            at = (start + result.taken + int(np.argmin(finite))) / rate
            raise InputError(f"{label}: NaN or infinite sample at {at:.3f} s: the recording is damaged, export it again")
        result.push(block)
        yield result.ready()
    if most is not None and result.taken > most:
        raise too_long(label, None if last is None else (last - start) / rate, max_seconds)
    reached = (start + result.taken) / rate
    if end is None and stop is None and total is not None and recording.exact and start + result.taken - total > SURPLUS_SECONDS * rate:
        raise InputError(
            f"{label}: its header announces {total / rate:g} s and {reached:g} s are in it: the header is wrong, or files were joined; "
            "export it again"
        )
    short = last is not None and last - start - result.taken > recording.slack * rate
    if short and total is not None and recording.exact:
        raise InputError(f"{label}: truncated: the decoder stopped at {reached:g} s of the {total / rate:g} s that the header announces")
    if end is not None and end > reached + END_TOLERANCE and (short or total is None):
        raise InputError(f"{label}: end_time {end:g} is past the recording's end at {reached:g} s")
    if not result.taken:
        raise InputError(f"{label}: no samples from {start / rate:g} s on: begin_time is past the recording's end")
    yield result.finish()
