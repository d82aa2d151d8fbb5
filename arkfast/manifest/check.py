"""Whether a row's recording is there, can be read and holds the row's segment and channel.

Each row is judged alone; ``check_rows`` does that for many with threads, since opening files is mostly waiting. Repeated ids are found in
``scan``.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from arkfast import audio, command_line
from arkfast.audio.channels import check_channel
from arkfast.audio.limits import MAX_SECONDS, check_count
from arkfast.audio.segment import open_end, outside
from arkfast.data.collate import read_clip
from arkfast.data.rows import Row, RowError
from arkfast.data.shards import TarMember, open_audio
from arkfast.manifest.durations import DurationCache, Length
from arkfast.records import InputError, Utterance

CHUNK = 128  # rows that a thread takes at a time: little overhead, and the cache is asked once for all of them
AHEAD = 2  # chunks waiting for each thread


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What makes a row bad besides its own fields."""

    headings: ClassVar[dict[str, str]] = {"decode": command_line.CHECKS, "workers": command_line.MACHINE}

    decode: bool = False
    """Decode every clip, which finds damage that no header shows; else only headers are read."""
    max_audio_seconds: float | None = 30.0
    """A longer clip is bad, as train and transcribe refuse it; none allows any."""
    require_text: bool = False
    """A row without a transcript is bad, as supervised training has it."""
    workers: int = 8
    """Threads that open recordings."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"--workers must be at least 1, got {self.workers}")
        if self.max_audio_seconds is not None and not self.max_audio_seconds > 0:
            raise ValueError(f"--max_audio_seconds must be above 0 (none allows any length), got {self.max_audio_seconds}")


@dataclass(frozen=True)
class Finding:
    """A row and what was found of it."""

    row: Row
    """The row."""
    seconds: float = 0.0
    """Length of its whole recording."""
    clip_seconds: float = 0.0
    """Length of its segment."""
    warnings: tuple[str, ...] = ()
    """What is doubtful about the clip and no error; known where it was decoded."""
    error: RowError | None = None
    """What is wrong with it, else None."""


def check_rows(rows: Iterable[Row], options: CheckOptions, cache: DurationCache) -> Iterator[Finding]:
    """One finding for each row, in order, with a bounded number of rows in memory.

    Raises:
        ImportError: a package without which no recording can be read is missing.
    """
    waiting: deque[Future[tuple[list[Finding], dict[str, Length]]]] = deque()
    stream = iter(rows)
    with ThreadPoolExecutor(options.workers, thread_name_prefix="arkfast-manifest") as pool:
        try:
            while True:
                if chunk := list(islice(stream, CHUNK)):
                    recordings = [_recording(row.utterance) for row in chunk if row.utterance]
                    waiting.append(pool.submit(_check_chunk, chunk, cache.get(recordings), options))
                if not waiting:
                    return
                if not chunk or len(waiting) >= options.workers * AHEAD:
                    findings, measured = waiting.popleft().result()
                    cache.put(measured)
                    yield from findings
        finally:
            for future in waiting:
                future.cancel()


def _check_chunk(rows: list[Row], known: Mapping[str, Length], options: CheckOptions) -> tuple[list[Finding], dict[str, Length]]:
    """Findings of some rows, and the lengths that had to be measured."""
    measured: dict[str, Length] = {}
    findings = []
    for row in rows:
        if row.utterance is None:
            findings.append(Finding(row, error=row.error))
            continue
        try:
            findings.append(_check(row, row.utterance, known, measured, options))
        except RowError as error:
            findings.append(Finding(row, error=error))
    return findings, measured


def _check(row: Row, utterance: Utterance, known: Mapping[str, Length], measured: dict[str, Length], options: CheckOptions) -> Finding:
    if options.require_text and not (utterance.text or "").strip():
        raise RowError(f"{utterance.where}: no text; supervised training needs a transcript in every row", "no text")
    length = _length(utterance, known, measured)
    seconds, cut = length.seconds, length.strict_cut if utterance.on_truncated == "fail" else length.cut
    name = f"{utterance.where}: {_label(utterance)}"
    channels = utterance.channel or ()
    with _blamed(utterance, "no such channel"):
        check_channel(name, channels, length.channels)
        check_count(name, len(channels) or length.channels)
    begin = utterance.begin or 0.0
    if reason := outside(begin, utterance.end, seconds):
        raise RowError(f"{name}: {reason}" + (f"; {cut}" if cut else ""), "segment outside")
    if cut and (utterance.end is None or utterance.end >= seconds):
        raise RowError(f"{name}: {open_end(cut, seconds)}", "damaged recording")
    clip = min(seconds, seconds if utterance.end is None else utterance.end) - begin
    limit = options.max_audio_seconds
    if limit is not None and clip > limit + 1e-6:  # seconds; less than a sample at any rate
        raise RowError(f"{name}: {clip:g} s of audio, over the limit of {limit:g} s: split it into segments", "too long")
    doubts: tuple[str, ...] = ()
    if options.decode:
        with _blamed(utterance, "damaged recording"):
            doubts = read_clip(utterance, max_seconds=MAX_SECONDS).warnings
    return Finding(row, seconds=seconds, clip_seconds=clip, warnings=doubts)


def _length(utterance: Utterance, known: Mapping[str, Length], measured: dict[str, Length]) -> Length:
    """The recording's length and whether its end is missing, from what is known of the file as it is now, else from its header."""
    recording, path = _recording(utterance), _path(utterance)
    member = TarMember.parse(path)
    try:
        state = os.stat(path if member is None else member.path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or error
        raise RowError(f"{utterance.where}: {_label(utterance)}: {reason}", "missing recording") from error
    length = measured.get(recording) or known.get(recording)
    if length is None or not length.matches(state):
        with _blamed(utterance, "unreadable recording"):
            source, name = open_audio(utterance)
            # One channel is asked for, so that a recording of any number of them is measured. Each row is asked whether its own is there.
            extent = audio.extent(source, channel=0, audio_track=utterance.audio_track, name=name)
            length = Length(state.st_size, state.st_mtime_ns, extent.seconds, extent.cut, extent.channels, extent.strict_cut)
        measured[recording] = length
    return length


@contextlib.contextmanager
def _blamed(utterance: Utterance, kind: str) -> Iterator[None]:
    """Whatever goes wrong inside is the row's fault, under ``kind``; a missing package is nobody's."""
    try:
        yield
    except InputError as error:
        raise RowError(str(error), kind) from error
    except ImportError:
        raise
    except Exception as error:  # decoders raise what they please, and one recording must not cost the others
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RowError(f"{utterance.where}: {_label(utterance)}: {what}", kind) from error


def _recording(utterance: Utterance) -> str:
    """What a length is kept under: the recording's path, with the audio track where one is chosen."""
    return _path(utterance) + (f"\naudio track {utterance.audio_track}" if utterance.audio_track else "")


def _path(utterance: Utterance) -> str:
    """The recording's absolute path, or the tar member with its place."""
    assert isinstance(utterance.audio, str)
    return os.path.join(os.getcwd(), utterance.audio)


def _label(utterance: Utterance) -> str:
    assert isinstance(utterance.audio, str)
    member = TarMember.parse(utterance.audio)
    return utterance.audio if member is None else member.label
