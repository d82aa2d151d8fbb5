"""What a transcription would take, without doing it: no model is loaded and nothing is written.

Every figure is counted, measured here, or follows from a rate that the user gives; where none is given, what depends on it is not told.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from arkfast.audio import SAMPLING_RATE, duration, reading
from arkfast.audio.segment import outside, segment_times
from arkfast.console import duration as as_time
from arkfast.data.collate import clip_name
from arkfast.data.ids import UniqueIds
from arkfast.data.manifest import no_rows
from arkfast.data.rows import Row
from arkfast.data.shards import TarMember, open_audio
from arkfast.files import is_standard_output, json_text
from arkfast.infer.first_rows import SHOWN, keep
from arkfast.infer.inputs import Input, input_rows, named
from arkfast.infer.options import TranscribeOptions
from arkfast.infer.transcriber import clips_under_way
from arkfast.records import InputError, JsonObject, Utterance

MEASURED_FILES = 3
"""So many files of a codec are decoded, to see how long that takes."""
MEASURED_SECONDS = 120.0
"""At most so much of each of them."""
FEATURE_BYTES = 128 * 4 * 100
"""Of the features of a second of audio: 128 bands of float32, 100 frames a second."""
SLOTS = 80
"""Taken where --batch_size is left to the device; what is held does not grow from here on."""
ROW_BYTES, TEXT_BYTES = 500, 40
"""Assumed of an output row: its other fields, and for each second of audio its text twice, at 20 characters a second."""
COPIES = 2
"""Of the rows on disk at once: the journal and what is being written."""


def dry_run(given: Input, options: TranscribeOptions, model: Path, *, rtfx: float | None, record: Path | None) -> int:
    """Print the forecast of a transcription.

    Args:
        given: as for ``input_rows``.
        options: the flags.
        model: the checkpoint, which is not loaded.
        rtfx: as for ``forecast``.
        record: standard output has JSON; None prints a table.

    Returns:
        0; 1 where rows are bad and ``--allow_failures`` is not set; 2 where the input or a flag is wrong, which is printed.
    """
    try:
        if record is not None and not is_standard_output(record):
            raise InputError(f"--run_record {record}: --dry_run writes no file; - prints JSON")
        plan = look(given, options)
        found = forecast(plan, options, model, rtfx=rtfx)
    except InputError as error:
        print(f"arkfast transcribe: error: {error}", file=sys.stderr)
        return 2
    print(table(plan, found, options) if record is None else json_text(found, indent=2))
    return 1 if plan.bad and not options.allow_failures else 0


@dataclass
class Codec:
    """The recordings with one suffix."""

    rows: int = 0
    seconds: float = 0.0
    """Of all rows."""
    few: list[Utterance] = field(default_factory=list)
    """The first recordings, each once; these are decoded."""
    speed: float | None = None
    """Seconds of audio that one core decodes and resamples in a second; None where no file could be decoded."""


@dataclass
class Plan:
    """What an input holds and what it would take."""

    rows: int = 0
    bad: int = 0
    """Rows that will fail, as far as their lines and the headers of their recordings tell."""
    repeats: int = 0
    """Rows that are left out since they repeat another."""
    seconds: float = 0.0
    """Of audio, in all rows that are not bad."""
    longest: float = 0.0
    """Seconds of the longest row."""
    longest_id: str = ""
    codecs: dict[str, Codec] = field(default_factory=dict)
    """By the recordings' suffix."""
    reasons: list[str] = field(default_factory=list)
    """The first three of bad rows."""
    over_limit: int = 0
    """Rows longer than --max_audio_seconds."""


def look(given: Input, options: TranscribeOptions) -> Plan:
    """Read an input and the headers of its recordings, and decode a few of them.

    Args:
        given: as for ``input_rows``.
        options: the flags.

    Raises:
        InputError: a manifest cannot be read, holds no rows, or an id stands there twice.
    """
    plan = Plan()
    with UniqueIds(allow_repeats=options.allow_repeats) as ids:
        for row in input_rows(given, fields=options.row_fields):
            if keep(row, ids, allow_repeats=options.allow_repeats):
                _count(row, plan, options.max_audio_seconds)
        plan.repeats = ids.repeats
    if not plan.rows:
        raise InputError(no_rows(named(given)))
    for codec in plan.codecs.values():
        codec.speed = _speed(codec.few)
    return plan


def _count(row: Row, plan: Plan, most_seconds: float) -> None:
    plan.rows += 1
    utterance = row.utterance
    try:
        if utterance is None:
            raise InputError(str(row.error))
        source, name = open_audio(utterance)
        there = duration(source, channel=utterance.channel, audio_track=utterance.audio_track, name=name)
        begin, end = segment_times(utterance.begin, utterance.end, clip_name(utterance))
        if past := outside(begin, end, there):
            raise InputError(f"{clip_name(utterance)}: {past}")
    except InputError as error:
        plan.bad += 1
        if len(plan.reasons) < SHOWN:
            plan.reasons.append(" ".join(str(error).split()))
        return
    length = (there if end is None else min(end, there)) - begin
    plan.seconds += length
    plan.over_limit += length > most_seconds
    if length > plan.longest:
        plan.longest, plan.longest_id = length, utterance.id
    audio = str(utterance.audio)
    codec = plan.codecs.setdefault(_suffix(audio), Codec())
    codec.rows += 1
    codec.seconds += length
    if len(codec.few) < MEASURED_FILES and audio not in (one.audio for one in codec.few):
        codec.few.append(utterance)


def _suffix(audio: str) -> str:
    member = TarMember.parse(audio)
    return Path(member.name if member else audio).suffix[1:].lower() or "no suffix"


def _speed(few: Iterable[Utterance]) -> float | None:
    """Seconds of audio that this process decodes and resamples in a second, over the beginnings of these recordings."""
    heard, spent = 0.0, 0.0
    for utterance in few:
        try:
            source, name = open_audio(utterance)
            started = time.perf_counter()
            with reading(source, channel=utterance.channel, audio_track=utterance.audio_track, name=name) as opened:
                got = 0.0
                for piece in opened:
                    got += len(piece) / SAMPLING_RATE
                    if got >= MEASURED_SECONDS:
                        break
        except InputError:  # damaged further on; the transcription will name it
            continue
        heard, spent = heard + got, spent + time.perf_counter() - started
    return heard / spent if heard else None


def forecast(plan: Plan, options: TranscribeOptions, model: Path, *, rtfx: float | None) -> JsonObject:
    """What a run would take, as the JSON object that stands for it.

    Args:
        plan: what ``look`` found.
        options: the flags.
        model: the checkpoint; where it is a folder here, its weights are counted.
        rtfx: seconds of audio that the device is taken to do in a second; None leaves out what depends on it.
    """
    codecs = {
        name: {
            "rows": codec.rows,
            "hours": codec.seconds / 3600,
            "rtfx_of_a_core": codec.speed,
            "cores": None if rtfx is None or codec.speed is None else rtfx / codec.speed,
        }
        for name, codec in sorted(plan.codecs.items(), key=lambda item: -item[1].seconds)
    }
    weights = sum(path.stat().st_size for path in model.glob("*.safetensors")) if model.is_dir() else 0
    clip = min(plan.longest, options.max_audio_seconds)
    return {
        "rows": plan.rows,
        "bad": plan.bad,
        "repeats": plan.repeats,
        "reasons": list(plan.reasons),
        "audio_seconds": plan.seconds,
        "longest_seconds": plan.longest,
        "longest_id": plan.longest_id or None,
        "over_limit": plan.over_limit,
        "codecs": codecs,
        "assumed_rtfx": rtfx,
        "gpu_hours_per_1000_hours": None if rtfx is None else 1000 / rtfx,
        "wall_seconds": None if rtfx is None else plan.seconds / rtfx,
        "weights_bytes": weights or None,
        "feature_bytes": round(clips_under_way(options.batch_size or SLOTS) * clip * FEATURE_BYTES),
        "disk_bytes": round(COPIES * (plan.rows * ROW_BYTES + plan.seconds * TEXT_BYTES)),
    }


def table(plan: Plan, found: JsonObject, options: TranscribeOptions) -> str:
    """The forecast as a person reads it.

    Args:
        plan: what ``look`` found.
        found: ``forecast`` of it.
        options: the flags.
    """
    rtfx = found["assumed_rtfx"]
    unknown = "not known without a rate; --assume_rtfx gives one"
    longest = f"{as_time(plan.longest)} ({plan.longest_id})" if plan.longest_id else "none can be read"
    cut = "a failed row each with --vad none" if options.vad == "none" else "cut at quiet places"
    lines = [
        f"rows            {plan.rows}" + (f", {plan.repeats} repeats left out" if plan.repeats else ""),
        f"audio           {plan.seconds / 3600:,.2f} h",
        f"longest         {longest}",
        f"over the limit  {plan.over_limit} of more than {options.max_audio_seconds:g} s" + (f", {cut}" if plan.over_limit else ""),
        f"GPU time        {unknown}"
        if rtfx is None
        else f"GPU time        {1000 / rtfx:,.2f} h for 1,000 h of audio, at the assumed {rtfx:g} times real time",
        f"time            {unknown}" if rtfx is None else f"time            {as_time(plan.seconds / rtfx)}, where enough cores decode",
        f"memory          {_size(found['feature_bytes'])} of features at most on the host; on the device the weights and the engine's slots"
        + (f" ({_size(found['weights_bytes'])} of weights on disk)" if found["weights_bytes"] else ""),
        f"disk            about {_size(found['disk_bytes'])} for the journal and the rows, at 20 characters a second",
        "codec        rows      hours   a core decodes" + ("" if rtfx is None else f"   cores for {rtfx:g} times real time"),
    ]
    for name, codec in found["codecs"].items():
        speed = codec["rtfx_of_a_core"]
        row = f"{name:<10} {codec['rows']:>6} {codec['hours']:>10,.2f}   " + (
            "cannot be decoded" if speed is None else f"{speed:,.0f} times real time"
        )
        lines.append(row + ("" if codec["cores"] is None else f"   {codec['cores']:,.1f}"))
    if plan.bad:
        lines += [f"bad rows        {plan.bad}, the first reasons:", *(f"  {reason}" for reason in plan.reasons)]
    return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
