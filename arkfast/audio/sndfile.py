"""Recordings that libsndfile decodes: wav, flac, mp3, ogg and their relatives.

What its lengths are worth, and where it keeps silent about damage, is the module ``soundness``.
"""

from __future__ import annotations

import functools
import io
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from arkfast.audio.hush import hushed
from arkfast.audio.sniff import MP3, Format
from arkfast.audio.soundness import Soundness
from arkfast.installation import install_hint
from arkfast.records import InputError

if TYPE_CHECKING:
    import soundfile

_BLOCK = 1 << 16  # frames decoded at a time


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


class SndfileRefused(Exception):
    """libsndfile cannot open a file; the text says so."""


class SndfileRecording:
    """An open recording; seeks to the sample, so a segment costs only itself.

    Args:
        sound: the file and what is known of its wholeness.
        form: what it is.

    Attributes:
        rate: Hz.
        channels: of the file.
        tracks: 1, since no format of libsndfile's has more.
        frames: samples per channel by the header (for MPEG layers I and II: libsndfile's guess).
        stop: where reading ends when all is wanted.
        slack: seconds that the decoder may stay under ``frames``: two MP3 frames at 16 kHz and a codec's delay.

    Raises:
        SndfileRefused: libsndfile cannot open it.
        ImportError: soundfile is not installed.
    """

    slack = 0.1
    tracks = 1

    def __init__(self, sound: Soundness, form: Format) -> None:
        self.sound, self._source, self._form, self._sf = sound, sound.source, form, _soundfile()
        self.frames = 0
        self._recording: soundfile.SoundFile = self._open()
        self.rate: int = self._recording.samplerate
        self.channels: int = self._recording.channels
        self.frames = self.stop = self._recording.frames

    def _open(self) -> soundfile.SoundFile:
        path = self._source.path
        # soundfile takes the name .raw for headerless audio, whatever the bytes say; a stream has no name.
        if path is None or self._source.patch is not None or path.lower().endswith(".raw"):
            with self._source.open() as stream:
                opened: Any = _Memory(stream.read())
        else:
            # soundfile encodes names strictly, and on POSIX they may be any bytes; on Windows it has a call for names in Unicode.
            opened = path if os.name == "nt" else os.fsencode(path)
        raw = self._form.raw
        try:
            if raw is not None:
                return self._sf.SoundFile(opened, samplerate=raw.rate, channels=1, format="RAW", subtype=raw.subtype, endian="LITTLE")
            with self._quiet():
                return self._sf.SoundFile(opened)
        except self._sf.LibsndfileError as error:
            raise SndfileRefused(f"libsndfile cannot read ({error.error_string.strip(' .')})") from error

    def _quiet(self) -> AbstractContextManager[None]:
        return hushed() if self._form is MP3 else nullcontext()

    def __enter__(self) -> SndfileRecording:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._recording.close()

    @property
    def exact(self) -> bool:
        """Whether ``frames`` is the file's word and no guess of the decoder's."""
        return self.sound.counted

    @property
    def seconds(self) -> float:
        """Length without decoding: the header's, or that of an MP3's frames where they are fewer or the header does not count them."""
        length, walked = self.frames / self.rate, self.sound.walked_seconds
        return length if walked is None else min(length, walked) if self.exact else walked

    @functools.cached_property
    def cut(self) -> str | None:
        """Why reading to the decoder's end would miss part of the recording, or None."""
        return self.sound.cut(self.frames / self.rate if self.frames else math.inf)

    def blocks(self, start: int, stop: int | None) -> Iterator[NDArray[np.float32]]:
        """Samples start … stop of all channels, or as many as the decoder delivers, in pieces [n, channels] that hold until the next.

        Raises:
            InputError: the decoder fails midway.
        """
        at, stop = start, self.frames if stop is None else stop
        block = np.empty((min(_BLOCK, stop - start), self.channels), dtype=np.float32)
        try:
            if start:
                with self._quiet():
                    self._recording.seek(start)
            while at < stop:
                # A buffer of our own: soundfile would size its by the header.
                with self._quiet():
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
