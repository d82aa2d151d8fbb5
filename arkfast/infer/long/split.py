"""A long recording as clips, found while it is read once from its begin to its end, in constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from arkfast import audio
from arkfast.audio.load import Used
from arkfast.audio.segment import segment_times
from arkfast.audio.waveform import as_array
from arkfast.data.collate import clip_name, samples_in_memory, what_is_heard
from arkfast.data.shards import TarMember, open_audio
from arkfast.infer.long.cuts import Cutter
from arkfast.infer.long.judges import Energy, Judge, Silero
from arkfast.records import InputError, Utterance

Vad = Literal["energy", "silero", "none"]
"""What chooses the places where a long recording is cut; ``none`` cuts nothing."""
VADS: tuple[Vad, ...] = get_args(Vad)
LEAST_LIMIT = 1.0
"""Seconds. Where clips may not even be that long, recordings are not cut: no word would stay whole."""
BLOCK_SECONDS = 10
"""So much is judged at a time."""
DOUBT_SECONDS = 1.0
"""A row's own ``duration`` is taken for the recording's length where it is this much below the limit: writers round it as they please."""


class Piece(NamedTuple):
    """A clip of a recording."""

    utterance: Utterance
    """What to transcribe."""
    begin: float
    """Where it begins in the recording, in seconds."""
    end: float
    """Where it ends."""


class Known(NamedTuple):
    """What is known of a recording when it has been read."""

    warnings: tuple[str, ...]
    """As ``Loaded.warnings``."""
    used: Used
    """As ``Loaded.used``."""


class Splitter:
    """Tells long recordings from others, and cuts them.

    Args:
        vad: what chooses the places.
        longest: longest clip in seconds.

    Raises:
        InputError: no such choice, or one that needs a package which is not installed.
    """

    def __init__(self, vad: Vad, longest: float) -> None:
        if vad not in VADS:
            raise InputError(f"vad must be one of {', '.join(VADS)}, got {vad!r}")
        self.vad, self._longest = vad, longest
        self._judge: Judge | None = None if vad == "none" or longest < LEAST_LIMIT else Energy() if vad == "energy" else Silero()

    def is_long(self, utterance: Utterance) -> bool:
        """Whether it is to be cut. One that cannot be read is not: whoever makes its features says what is wrong.

        A recording is opened for that, without being decoded, unless the row has its begin and its end, or a ``duration`` well below the
        limit.
        """
        if self._judge is None:
            return False
        length = _length(utterance, self._longest)
        return length is not None and length - self._longest > 1e-6

    def pieces(self, utterance: Utterance, *, tell: list[Known]) -> Iterator[Piece]:
        """The clips of a long recording, ascending and without overlap.

        Where a clip can be read on its own at its own cost, its utterance is a segment of the same recording, so that whoever transcribes
        that segment alone hears the same. Of formats that are decoded from their start, and of members of tar files, it holds the samples.

        Args:
            utterance: the recording, or a segment of one.
            tell: gets what is known of the recording, when all clips were given.

        Raises:
            InputError: the recording cannot be read, or no further; clips before that place have been given.
        """
        judge = self._judge
        assert judge is not None, "nothing is long"
        first = segment_times(utterance.begin, utterance.end, clip_name(utterance))[0]
        with _opened(utterance) as opened:
            cutter, held, read = Cutter(judge.frame / audio.SAMPLING_RATE, self._longest), _Held(keep=not opened.seeks), 0
            for block in _blocks(opened.samples, BLOCK_SECONDS * audio.SAMPLING_RATE // judge.frame * judge.frame):
                read += len(block)
                held.add(block)
                whole = np.pad(block, (0, -len(block) % judge.frame))
                for begin, end in cutter.push(judge(whole)):
                    yield _piece(utterance, first, begin * judge.frame, end * judge.frame, held, last=False)
                held.forget(cutter.at * judge.frame)
            for begin, end in cutter.finish():
                stop = min(end * judge.frame, read)
                yield _piece(utterance, first, begin * judge.frame, stop, held, last=stop == read)
            tell.append(opened.known())


def _length(utterance: Utterance, longest: float) -> float | None:
    """Seconds that a row asks for; None where that cannot be told."""
    begin, end = max(utterance.begin or 0.0, 0.0), utterance.end
    if end is not None and end >= 0:
        return end - begin
    if utterance.audio is None:
        return None
    if not isinstance(utterance.audio, str):
        return len(as_array(utterance.audio)) / audio.SAMPLING_RATE - begin
    said = utterance.extra.get("duration")
    if not begin and isinstance(said, (int, float)) and 0 < said <= longest - DOUBT_SECONDS:
        return float(said)
    try:
        source, name = open_audio(utterance)
        return audio.extent(source, channel=utterance.channel, audio_track=utterance.audio_track, name=name).seconds - begin
    except InputError:
        return None


class _Opened(NamedTuple):
    samples: Iterable[NDArray[np.float32]]
    seeks: bool
    reading: audio.Reading | None

    def known(self) -> Known:
        return Known((), {}) if self.reading is None else Known(self.reading.warnings(), self.reading.used)


@contextmanager
def _opened(utterance: Utterance) -> Iterator[_Opened]:
    if isinstance(utterance.audio, str):
        source, name = open_audio(utterance)
        with audio.reading(source, name=name, **what_is_heard(utterance)) as reading:
            yield _Opened(reading, reading.seeks and TarMember.parse(utterance.audio) is None, reading)
    else:
        yield _Opened([samples_in_memory(utterance, max_seconds=None)], True, None)


def _blocks(pieces: Iterable[NDArray[np.float32]], length: int) -> Iterator[NDArray[np.float32]]:
    """The same samples in blocks of one length; the last may be shorter."""
    waiting: list[NDArray[np.float32]] = []
    count = 0
    for piece in pieces:
        waiting.append(piece)
        count += len(piece)
        if count < length:
            continue
        joined = np.concatenate(waiting)
        whole = count // length * length
        yield from (joined[at : at + length] for at in range(0, whole, length))
        waiting, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(waiting)


class _Held:
    """The samples from some place on, where they are needed."""

    def __init__(self, *, keep: bool) -> None:
        self.keep = keep
        self._at, self._samples = 0, np.empty(0, dtype=np.float32)

    def add(self, block: NDArray[np.float32]) -> None:
        if self.keep:
            self._samples = np.concatenate([self._samples, block])

    def forget(self, before: int) -> None:
        """Drop what lies before a sample."""
        if self.keep:
            self._at, self._samples = before, self._samples[before - self._at :]

    def part(self, begin: int, end: int) -> NDArray[np.float32]:
        return self._samples[begin - self._at : end - self._at].copy()


def _piece(utterance: Utterance, first: float, begin: int, end: int, held: _Held, *, last: bool) -> Piece:
    """A clip from sample ``begin`` to ``end`` at 16 kHz, counted from ``first`` seconds on; the last one ends where the row does."""
    times = [round(first + sample / audio.SAMPLING_RATE, 6) for sample in (begin, end)]
    part = replace(utterance, id=f"{utterance.id}@{times[0]:.6g}", where=utterance.name)
    if held.keep:
        part = replace(part, audio=held.part(begin, end), begin=None, end=None, channel=None, audio_track=None)
    else:
        part = replace(part, begin=times[0], end=utterance.end if last else times[1])
    return Piece(part, *times)
