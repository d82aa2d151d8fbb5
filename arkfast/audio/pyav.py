"""Recordings that FFmpeg decodes through PyAV: m4a and mp4, webm and mkv, wma, raw aac, amr, flac without a length, flv, ts, avi, wv.

A container's timeline is kept: what is played before zero (an encoder's priming) is left out, and what starts late starts late. Samples
keep the recording's own rate. Nothing is ever sought, because AAC decodes differently after a seek and webm's millisecond timestamps would
misplace the samples; a segment is counted from the recording's first sample.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Generator, Iterator
from fractions import Fraction
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from arkfast.audio.channels import check_track
from arkfast.audio.container import fragmented_mp4
from arkfast.audio.flac import FlacOrder
from arkfast.audio.sniff import ADTS, AMR, CAF, MP4, PIPED_FLAC, TS, Format
from arkfast.audio.soundness import Soundness
from arkfast.installation import install_hint
from arkfast.records import InputError

if TYPE_CHECKING:
    import av

_JUMP = 0.1  # seconds from one frame to the next that timestamps may be off: rounding to milliseconds, and a lost frame at most
_DTYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "flt": "f4", "dbl": "f8"}
_BLOCK = 1 << 16  # samples given at a time
_MOST_FILLING = 0.5  # seconds behind the header's end: an encoder's delay and two of its frames are 0.4 s of AAC at 8 kHz


class PyavMissing(InputError):
    """PyAV is not installed."""


def _av(label: str, form: Format) -> ModuleType:
    try:
        import av
    except ModuleNotFoundError as error:
        raise PyavMissing(f"{label}: reading {form.name} needs PyAV: {install_hint('containers')}, or convert the file") from error
    return av


class PyavRecording:
    """An audio track of an open file.

    Args:
        sound: the file and what is known of its wholeness.
        form: what it is; no other demuxer is tried on its bytes.
        audio_track: which of its audio tracks, from 0.

    Attributes:
        rate: Hz, of the first decoded frame: an AAC header may name half of it.
        channels: of the first decoded frame.
        tracks: audio tracks in the file.
        frames: samples per channel by the header, None where nothing says (raw aac, amr, piped flac, live webm and mp4).
        stop: where reading ends when all is wanted: an mp4's edit list cuts the encoder's padding off; elsewhere None, the packets' end.
        slack: seconds by which the header's length may be off; Matroska's and ASF's count the encoder's delay and round.
        exact: where there is a length at all, it is the file's word.

    Raises:
        InputError: the file has no such audio track, or one that FFmpeg cannot decode, or it is damaged at its head; PyAV is not installed.
    """

    exact = True

    def __init__(self, sound: Soundness, form: Format, audio_track: int = 0) -> None:
        self.sound, self._source, self._form, self._which = sound, sound.source, form, audio_track
        self._av = _av(self._source.label, form)
        self.frames: int | None = None
        with contextlib.ExitStack() as stack:
            self._container, self._track = self._open(stack)
            self.tracks = len(self._container.streams.audio)
            self._ahead = self._decode()
            stack.callback(self._ahead.close)
            first = next(self._ahead, None)
            if first is None:
                raise InputError(f"{self._source.label}: {self.cut or 'the recording holds no samples'}")
            self._first: av.AudioFrame = first
            self.rate: int = first.sample_rate
            self.channels: int = first.layout.nb_channels
            announced = self._announced()
            self.frames = None if announced is None else round(announced * self.rate)
            self.stop = self.frames if form in (MP4, CAF) else None
            self.slack = 0.1 if form in (MP4, CAF) else 0.25
            self._stack = stack.pop_all()

    def _open(self, stack: contextlib.ExitStack) -> tuple[av.container.InputContainer, av.AudioStream]:
        """The container and the audio track; ``stack`` closes them."""
        label, stream = self._source.label, stack.enter_context(self._source.open())
        try:
            # Tags in old code pages must not make the audio unreadable.
            container = self._av.open(stream, format=self._form.demuxer, metadata_errors="replace")
        except self._av.FFmpegError as error:
            reason = self.cut or f"damaged at its head ({error.strerror}): export it again"
            raise InputError(f"{label}: {reason}") from error
        stack.callback(container.close)
        if not container.streams.audio:
            raise InputError(f"{label}: no audio track in it")
        check_track(label, self._which, len(container.streams.audio))
        track = container.streams.audio[self._which]
        if track.codec_context is None:
            raise InputError(f"{label}: a {self._form.name} file whose audio FFmpeg cannot decode: convert it to wav or flac")
        track.codec_context.thread_count = 1  # callers run one process per core
        if self._form is PIPED_FLAC:
            track.codec_context.options = {"err_detect": "crccheck+explode"}
        if self._form is CAF and track.codec_context.name == "alac":  # it would cut the filling off twice; the header's end cuts it once
            track.codec_context.options = {"flags2": "skip_manual"}
        return container, track

    def __enter__(self) -> PyavRecording:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def _announced(self) -> float | None:
        """Seconds from the timeline's zero to the end by the header."""
        if self._form in (ADTS, AMR, TS) or self._form.raw is not None:  # FFmpeg's figure is a guess from the bit rate
            return None
        if self._form is MP4:
            with self._source.open() as stream:
                if fragmented_mp4(stream):  # its figure is the length of what it has read so far
                    return None
        track = self._track
        if track.duration is not None:
            tick = _tick(track)
            return float((track.start_time or 0) * tick + track.duration * tick) - self._zero
        if self._container.duration is not None:  # Matroska's counts from its clock's zero (RFC 9559 §5.1.2.10)
            return self._container.duration / self._av.time_base - self._zero
        return None

    @property
    def _zero(self) -> float:
        """Where the timeline begins in the container's clock: an mp4's movie time has a zero; a piece of a stream has old timestamps."""
        if self._form is MP4:
            return 0.0
        return max(0, self._container.start_time or 0) / self._av.time_base

    @functools.cached_property
    def cut(self) -> str | None:
        """Why part of the recording is missing, told from the container, or None."""
        return self.sound.cut(self.frames / self.rate if self.frames else math.inf)

    @property
    def seconds(self) -> float:
        """Length by the header, or by the packets' timestamps where there is none; those are read, not decoded."""
        if self.frames is not None:
            return self.frames / self.rate
        with contextlib.ExitStack() as stack:
            container, track = self._open(stack)
            try:
                ticks = sum(packet.duration or 0 for packet in self._packets(container, track))
            except self._av.FFmpegError as error:
                raise InputError(f"{self._source.label}: truncated or damaged ({error.strerror}): get the whole file") from error
            return float(ticks * _tick(track))

    def _packets(self, container: av.container.InputContainer, track: av.AudioStream) -> Iterator[av.Packet[av.AudioStream]]:
        """The track's packets in order."""
        try:
            yield from container.demux(track)
        except IndexError as error:  # PyAV knows the tracks that there were when the file was opened
            raise InputError(
                f"{self._source.label}: damaged, or a further track begins midway, which PyAV cannot follow: export it again"
            ) from error

    def _decode(self) -> Generator[av.AudioFrame, None, None]:
        """Frames in order."""
        label, seconds = self._source.label, 0.0
        order = FlacOrder() if self._form is PIPED_FLAC else None
        try:
            for packet in self._packets(self._container, self._track):
                if packet.is_corrupt:
                    raise InputError(f"{label}: truncated or damaged: a packet is cut short after {seconds:.2f} s: get the whole file")
                decoded = packet.decode()
                if order and packet.size and not order.follows(bytes(packet), sum(frame.samples for frame in decoded)):
                    raise InputError(f"{label}: truncated or damaged: a frame is missing before {seconds:.2f} s: get the whole file")
                for frame in decoded:
                    yield frame
                    seconds += frame.samples / max(1, frame.sample_rate)
        except self._av.FFmpegError as error:
            raise InputError(
                f"{label}: truncated or damaged: the decoder failed after {seconds:.2f} s ({error.strerror}): get the whole file"
            ) from error
        if order and not order.ends():
            raise InputError(f"{label}: truncated or damaged: the last frame ends in noise: get the whole file")

    def blocks(self, start: int, stop: int | None) -> Iterator[NDArray[np.float32]]:
        """Samples start … stop of all channels, or as many as there are, in pieces [n, channels]. Can be called once.

        Sample 0 is the container's zero: a track that starts late begins with silence, and samples before zero are left out.

        Raises:
            InputError: the decoder fails midway, timestamps jump, or the rate changes.
        """
        gathered: list[NDArray[Any]] = []
        held = 0
        to_end = stop is not None and stop == self.stop
        for at, piece in self._pieces(start):
            part = piece[max(0, start - at) : None if stop is None else max(0, stop - at)]
            if to_end and self.stop is not None and at + len(piece) - self.stop > _MOST_FILLING * self.rate:
                raise InputError(
                    f"{self._source.label}: its header ends it at {self.stop / self.rate:g} s and its packets go on: the header is wrong, "
                    "or files were joined; export it again"
                )
            # A frame is some 20 ms; larger blocks cost less. They are of one kind.
            if held >= _BLOCK or (gathered and (part.dtype, part.shape[1]) != (gathered[0].dtype, gathered[0].shape[1])):
                yield _full_scale(np.concatenate(gathered))
                gathered, held = [], 0
            if len(part):
                gathered.append(part)
                held += len(part)
            if stop is not None and at + len(piece) >= stop and not to_end:
                break
        if held:
            yield _full_scale(np.concatenate(gathered))

    def _pieces(self, start: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """(sample, samples [n, channels] from there on, as decoded) of all frames that reach past ``start``."""
        at, begun = 0, False
        for frame in self._checked():
            count, skip = frame.samples, 0
            if not begun and frame.pts is not None:
                offset = self._offset(frame)
                skip = min(count, max(0, -offset))
                begun = skip < count
                for at in range(0, max(0, offset), _BLOCK):
                    yield at, np.zeros((min(_BLOCK, offset - at), 1), dtype=np.float32)
                at = max(0, offset)
            if at + count - skip > start and skip < count:
                yield at, self._array(frame)[skip:]
            at += count - skip

    def _array(self, frame: av.AudioFrame) -> NDArray[Any]:
        """A frame's samples [n, channels] as decoded.

        PyAV's own ``to_ndarray`` counts planes until it meets an empty one, and of eight channels reads a ninth from where none is.
        """
        channels, kind = frame.layout.nb_channels, frame.format.name.removesuffix("p")
        dtype = _DTYPES.get(kind)
        if dtype is None:  # 64-bit integers
            raise InputError(f"{self._source.label}: samples of type {frame.format.name} cannot be read: export it in 32 bits")
        if not frame.format.is_planar:
            return np.frombuffer(bytes(frame.planes[0]), dtype, frame.samples * channels).reshape(-1, channels)
        planes = frame.planes[:channels]
        return np.stack([np.frombuffer(bytes(plane), dtype, frame.samples) for plane in planes], axis=1)

    def _offset(self, frame: av.AudioFrame) -> int:
        """Samples from the timeline's zero to a first frame; a shift within one tick of the container's clock is rounding."""
        assert frame.pts is not None
        tick = _tick(frame)
        offset = float(frame.pts * tick) - self._zero
        return 0 if abs(offset) <= float(tick) and tick * self.rate > 1 else round(offset * self.rate)

    def _checked(self) -> Iterator[av.AudioFrame]:
        """All frames, refused when one stands elsewhere in the container's clock than where the one before it ends, or has another rate.

        Each is held against the one before it, so that a recorder's clock may drift.
        """
        label, rate, tick = self._source.label, self.rate, float(_tick(self._first))
        seconds, due = 0.0, None
        for frame in itertools.chain((self._first,), self._ahead):
            if frame.sample_rate != rate:
                raise InputError(
                    f"{label}: the sampling rate changes from {rate} to {frame.sample_rate} Hz after {seconds:.2f} s: export it again"
                )
            stands = None if frame.pts is None else frame.pts * tick
            if due is not None and stands is not None and abs(stands - due) > _JUMP:
                raise InputError(
                    f"{label}: damaged or recorded with pauses: after {seconds:.2f} s its timestamps jump by {stands - due:.2f} s; export "
                    "it again, e.g. ffmpeg -i input -af aresample=async=1 output.wav"
                )
            length = frame.samples / rate
            due = None if stands is None else stands + length
            seconds += length
            yield frame


def _tick(timed: av.AudioFrame | av.AudioStream) -> Fraction:
    """Seconds of one count of a frame's or a track's clock."""
    assert timed.time_base is not None, "audio that FFmpeg decodes has a clock"
    return timed.time_base


def _full_scale(samples: NDArray[Any]) -> NDArray[np.float32]:
    """Samples as float32, full scale at ±1."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32, copy=False)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - np.float32(128)) / np.float32(128)
    return samples.astype(np.float32) * np.float32(2.0 ** (1 - 8 * samples.dtype.itemsize))
