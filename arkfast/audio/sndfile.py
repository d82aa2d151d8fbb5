"""Recordings that libsndfile decodes: wav, flac, mp3, ogg and their relatives.

Knows libsndfile's ways: what its lengths are worth and where it keeps silent about damage. Knows no segments and no resampling.
"""

from __future__ import annotations

import functools
import io
import math
import os
from collections.abc import Iterator
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from arkfast.audio.container import missing_end, seconds_behind_tag, untagged_mp3_seconds
from arkfast.audio.flac import flac_disagreement
from arkfast.audio.ogg import OggState, walk_pages
from arkfast.audio.sniff import FLAC, MP3, OGG, Format
from arkfast.audio.source import Bytes
from arkfast.installation import install_hint
from arkfast.records import InputError

if TYPE_CHECKING:
    import soundfile

_BLOCK = 1 << 16  # frames decoded at a time
_MP3_PADDING = 0.5  # seconds: the tag's own frame and what an encoder adds at both ends take up to 0.4 at 8 kHz


def _soundfile() -> ModuleType:
    try:
        import soundfile
    except ModuleNotFoundError as error:
        raise ImportError(f"reading recordings needs soundfile: {install_hint('asr')}") from error
    return soundfile


class _Memory(io.BytesIO):
    """Bytes of a damaged file may send the decoder before their start, of which soundfile would print a traceback."""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return super().seek(max(0, offset) if whence == os.SEEK_SET else offset, whence)


class SndfileRecording:
    """An open recording; seeks to the sample, so a segment costs only itself.

    Args:
        source: the file.
        form: what it is.

    Attributes:
        rate: Hz.
        channels: of the file.
        tracks: 1, since no format of libsndfile's has more.
        frames: samples per channel by the header (for an MP3 without a length tag: libsndfile's guess).
        stop: where reading ends when all is wanted.
        slack: seconds that the decoder may stay under ``frames``: two MP3 frames at 16 kHz and a codec's delay.

    Raises:
        InputError: libsndfile cannot open it.
        ImportError: soundfile is not installed.
    """

    slack = 0.1
    tracks = 1

    def __init__(self, source: Bytes, form: Format) -> None:
        self._source, self._form, self._sf = source, form, _soundfile()
        self.frames = 0
        self._recording: soundfile.SoundFile = self._open()
        self.rate: int = self._recording.samplerate
        self.channels: int = self._recording.channels
        self.frames = self.stop = self._recording.frames

    def _open(self) -> soundfile.SoundFile:
        path, label = self._source.path, self._source.label
        # soundfile takes the name .raw for headerless audio, whatever the bytes say; a stream has no name.
        if path is None or path.lower().endswith(".raw"):
            with self._source.open() as stream:
                opened: Any = _Memory(stream.read())
        else:
            # soundfile encodes names strictly, and on POSIX they may be any bytes; on Windows it has a call for names in Unicode.
            opened = path if os.name == "nt" else os.fsencode(path)
        try:
            return self._sf.SoundFile(opened)
        except self._sf.LibsndfileError as error:
            reason = self.cut or (
                f"damaged at its head, or a kind of {self._form.name} that libsndfile cannot read ({error.error_string.strip(' .')}): "
                "export it again, e.g. ffmpeg -i input -ac 1 -ar 16000 output.wav"
            )
            raise InputError(f"{label}: {reason}") from error

    def __enter__(self) -> SndfileRecording:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._recording.close()

    @functools.cached_property
    def _walked(self) -> float | None:
        """Seconds of an MP3 without a length tag by its frame headers, None for everything else."""
        if self._form is not MP3:
            return None
        with self._source.open() as stream:
            return untagged_mp3_seconds(stream)

    @property
    def exact(self) -> bool:
        """Whether ``frames`` is the file's word and no guess of the decoder's."""
        return self._walked is None

    @property
    def seconds(self) -> float:
        """Length without decoding, exact also for an MP3 without a length tag."""
        return self.frames / self.rate if self._walked is None else self._walked

    @property
    def damage(self) -> str | None:
        """Why the decoder would pass over something in silence, or None."""
        if self._form is FLAC:  # seeking goes by the frames' numbers, so of joined files a segment may be the other one's
            with self._source.open() as stream:
                reason = flac_disagreement(stream)
        else:
            reason = _ogg_state(self._source).damage if self._form is OGG else None
        return None if reason is None else f"damaged: {reason}: get the file again, or re-encode it"

    @functools.cached_property
    def cut(self) -> str | None:
        """Why reading to the decoder's end would miss part of the recording, or None."""
        seconds = self.frames / self.rate if self.frames else math.inf
        if self._form is OGG:
            ends = _ogg_state(self._source).ends
            return None if ends else "truncated: its last Ogg page does not mark the end of the stream: get the whole file"
        if self._form is not MP3:
            with self._source.open() as stream:
                return missing_end(stream, seconds)
        if self._walked is None:
            with self._source.open() as stream:
                whole = seconds_behind_tag(stream)
            if whole <= seconds + _MP3_PADDING:
                return None
            return (
                f"its length tag ends it at {seconds:.2f} s and its frames go on to {whole:.2f} s: split what was joined, or re-encode it"
            )
        if self._walked > seconds + self.slack:
            return f"this MP3 has no length tag, so of its {self._walked:.2f} s the decoder reaches only {seconds:.2f}: re-encode it"
        return None

    def blocks(self, start: int, stop: int | None) -> Iterator[NDArray[np.float32]]:
        """Samples start … stop of all channels, or as many as the decoder delivers, in pieces [n, channels] that hold until the next.

        Raises:
            InputError: the decoder fails midway.
        """
        at, stop = start, self.frames if stop is None else stop
        block = np.empty((min(_BLOCK, stop - start), self.channels), dtype=np.float32)
        try:
            if start:
                self._recording.seek(start)
            while at < stop:
                # A buffer of our own: soundfile would size its by the header.
                got = self._recording.read(out=block[: stop - at])
                if not len(got):
                    return
                at += len(got)
                yield got
        except self._sf.LibsndfileError as error:
            begin, end = at / self.rate, min(at + _BLOCK, stop) / self.rate
            raise InputError(
                f"{self._source.label}: truncated or damaged: the decoder failed between {begin:.2f} and {end:.2f} s "
                f"({error.error_string.strip(' .')}): get the whole file"
            ) from error


def _ogg_state(source: Bytes) -> OggState:
    if source.path is None:
        with source.open() as stream:
            return walk_pages(stream)
    assert source.version is not None
    return _ogg_file_state(source.path, source.version)


@functools.lru_cache(maxsize=64)
def _ogg_file_state(path: str, version: tuple[int, int]) -> OggState:
    """Remembered, because a manifest may ask for a hundred segments of one long recording."""
    with open(path, "rb") as stream:
        return walk_pages(stream)
