"""What can be said of a file's wholeness from its bytes, whoever decodes it.

Three verdicts: damage, by which no sample of the file is to be trusted; a cut, by which what the header names is sound and the rest is
missing or would be left out; a doubt, which is a warning. An MP3 without a length tag and a header that was never finished are mended here
before a decoder sees them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import BinaryIO, TypeVar

from arkfast.audio.container import missing_end
from arkfast.audio.flac import flac_disagreement
from arkfast.audio.headerless import taken_for
from arkfast.audio.mp3 import Walk, walk, with_length_tag
from arkfast.audio.ogg import OggState, walk_pages
from arkfast.audio.sniff import FLAC, MP3, NIST, OGG, W64, Format
from arkfast.audio.source import Bytes
from arkfast.audio.surplus import surplus, unfinished

Found = TypeVar("Found")

LAYER_III = 1
_LEAST_SECONDS = 0.1  # a frame or two of MP3
_NO_END_MARK = "its last Ogg page does not mark the end of the stream"


class Soundness:
    """The verdicts on one file.

    Args:
        source: the file.
        form: what it is.
        strict: whether an Ogg file without the end mark counts as cut though its last page is whole.

    Attributes:
        source: the file as the decoder is to see it: with a length in its header where that can be had from its bytes.
    """

    def __init__(self, source: Bytes, form: Format, *, strict: bool = False) -> None:
        self._form, self._strict, self._original = form, strict, source
        self._unfinished = False
        self.source = source
        if form is MP3:
            walked = self._walk
            mends = walked is not None and walked.layer == LAYER_III and walked.changes_at is None and walked.announced is None
            if walked is not None and mends and walked.frames:
                with source.open() as stream:
                    data = with_length_tag(stream.read(), walked)
                self.source = replace(source, path=None, content=data)
        elif form is OGG:  # libsndfile fails at the end of an Opus file that is not marked
            if self._pages.damage is None and self._pages.ends and self._pages.mark is not None:
                self.source = replace(source, patch=self._pages.mark)
        elif form is not FLAC and form.raw is None:
            with source.open() as stream:
                patch = unfinished(stream)
            if patch is not None:
                self._unfinished = True
                self.source = replace(source, patch=patch)

    @functools.cached_property
    def _walk(self) -> Walk | None:
        return _remembered(self._original, _walk_stream, _walked)

    @functools.cached_property
    def _pages(self) -> OggState:
        return _remembered(self._original, walk_pages, _paged)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is doubtful about a file that is read all the same."""
        if self._form.raw is not None:
            return (taken_for(self._form),)
        if self._unfinished:
            return ("its header was never finished: it is read to the file's end",)
        if self.unmarked is not None:
            return (f"{_NO_END_MARK}: pages may be missing",)
        if self._form is MP3 and self._walk is not None and self._walk.stray:
            return (f"{self._walk.stray} bytes between its MP3 frames are neither frames nor tags and are passed over",)
        return ()

    @functools.cached_property
    def damage(self) -> str | None:
        """Why the decoder would pass over something in silence, so that no sample is sure to be where it should be; or None."""
        reason = None
        if self._form is OGG:
            reason = self._pages.damage
        elif self._form is FLAC:  # seeking goes by the frames' numbers, so of joined files a segment may be the other one's
            reason = _remembered(self._original, flac_disagreement, _flacs)
        elif self._form in (NIST, W64):  # libsndfile reads on to the file's end, and takes another header for samples
            with self._original.open() as stream:
                reason = surplus(stream, 0.0)
        elif self._form is MP3 and (walked := self._walk) is not None:
            if walked.changes_at is not None:
                reason = f"the sampling rate or the number of channels changes after {walked.changes_at:.2f} s, as in files joined"
            elif walked.stray and walked.announced is not None and _seconds(walked, walked.announced - walked.frames) > _LEAST_SECONDS:
                reason = (
                    f"its length tag announces {_seconds(walked, walked.announced):.2f} s and its frames are {walked.seconds:.2f} s long, "
                    f"with {walked.stray} bytes of something else between them"
                )
        return None if reason is None else f"damaged: {reason}: get the file again, or re-encode it"

    def cut(self, seconds: float) -> str | None:
        """Why reading to the decoder's end would miss part of the recording, or None.

        Args:
            seconds: how long the decoder says it is; infinity where it cannot say.
        """
        if self._form is OGG:
            if not self._pages.ends:
                return "truncated: its last Ogg page is not whole: get the whole file"
            return self.unmarked if self._strict else None
        if self._form is MP3:
            return None if self._walk is None else _mp3_cut(self._walk, seconds)
        if self._form is FLAC or self._form.raw is not None:
            return None
        with self.source.open() as stream:
            return missing_end(stream, seconds) or surplus(stream, seconds if math.isfinite(seconds) else 0.0)

    @property
    def unmarked(self) -> str | None:
        """Why an Ogg file whose last page is whole may be truncated all the same; None for other files and marked ones."""
        if self._form is OGG and self._pages.ends and not self._pages.marked:
            return f"truncated: {_NO_END_MARK}: get the whole file"
        return None

    @property
    def counted(self) -> bool:
        """Whether the header that the decoder sees names the length; that of MPEG's layers I and II does not."""
        return self._form is not MP3 or self._walk is None or self._walk.layer == LAYER_III

    @property
    def walked_seconds(self) -> float | None:
        """The length of an MP3's frames, None for anything else."""
        return self._walk.seconds if self._form is MP3 and self._walk is not None else None


def _mp3_cut(walked: Walk, seconds: float) -> str | None:
    if walked.announced is None:
        if walked.layer != LAYER_III and walked.seconds > seconds + _LEAST_SECONDS:
            return f"this MP3 has no length tag, so of its {walked.seconds:.2f} s the decoder reaches only {seconds:.2f}: re-encode it"
        return None
    if _seconds(walked, walked.frames - walked.announced) > _LEAST_SECONDS:
        return (
            f"its length tag ends it at {seconds:.2f} s and its frames go on to {walked.seconds:.2f} s: split what was joined, or "
            "re-encode it"
        )
    if _seconds(walked, walked.announced - walked.frames) > _LEAST_SECONDS:
        return f"truncated: its length tag announces {seconds:.2f} s and its frames end at {walked.seconds:.2f} s: get the whole file"
    return None


def _seconds(walked: Walk, frames: int) -> float:
    return frames * walked.samples_a_frame / walked.hz


def _walk_stream(stream: BinaryIO) -> Walk | None:
    return walk(stream.read())


def _remembered(source: Bytes, look: Callable[[BinaryIO], Found], remembered: Callable[[str, tuple[int, int]], Found]) -> Found:
    """What ``look`` sees in a file; of files on disk it is kept, because a manifest may ask for a hundred segments of a long recording."""
    if source.path is None:
        with source.open() as stream:
            return look(stream)
    assert source.version is not None
    return remembered(source.path, source.version)


@functools.lru_cache(maxsize=64)
def _paged(path: str, version: tuple[int, int]) -> OggState:
    with open(path, "rb") as stream:
        return walk_pages(stream)


@functools.lru_cache(maxsize=64)
def _walked(path: str, version: tuple[int, int]) -> Walk | None:
    with open(path, "rb") as stream:
        return _walk_stream(stream)


@functools.lru_cache(maxsize=64)
def _flacs(path: str, version: tuple[int, int]) -> str | None:
    with open(path, "rb") as stream:
        return flac_disagreement(stream)
