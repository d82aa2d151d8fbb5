"""What a transcription would take, without doing it: no model is loaded and nothing is written.

Every figure is counted, measured here, or follows from a rate that the user gives; where none is given, what depends on it is not told.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from arkfast.files.remote import is_remote, remote_size, shown
from arkfast.infer.fetching import over_limit
from arkfast.infer.first_rows import SHOWN, keep
from arkfast.infer.inputs import Input, input_rows, named
from arkfast.infer.options import TranscribeOptions
from arkfast.infer.ranks.plan import known_seconds
from arkfast.infer.transcriber import clips_under_way
from arkfast.records import InputError, JsonObject, Utterance

MEASURED_FILES = 3
"""So many files of a codec are decoded, to see how long that takes."""
MEASURED_SECONDS = 120.0
"""At most so much of each of them."""
ASKED_TOGETHER, ASKED_AT_ONCE = 1024, 16
"""Recordings of other machines whose size is asked for, in one go and at the same time."""
FEATURE_BYTES = 128 * 4 * 100
"""Of the features of a second of audio: 128 bands of float32, 100 frames a second."""
SAMPLE_BYTES = 4 * SAMPLING_RATE
"""Of the samples of a second, which wait in their place with --features device."""
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
    elsewhere: int = 0
    """Rows of recordings of other machines, which are not decoded here."""
    seconds: float = 0.0
    """Of all rows, as far as known."""
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
    elsewhere: int = 0
    """Rows whose recording is on another machine and is there."""
    elsewhere_bytes: int = 0
    """Of those recordings, as far as their machines say."""
    unsized: int = 0
    """How many of those are of a size that nobody says."""
    unmeasured: int = 0
    """How many of those are of a length that the row does not say, so that ``seconds`` lacks them."""


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
        elsewhere: list[Utterance] = []
        for row in input_rows(given, fields=options.row_fields):
            if not keep(row, ids, allow_repeats=options.allow_repeats):
                continue
            if row.utterance is not None and is_remote(str(row.utterance.audio)):
                elsewhere.append(row.utterance)
                if len(elsewhere) == ASKED_TOGETHER:
                    _ask(elsewhere, plan, options)
                    elsewhere.clear()
            else:
                _count(row, plan, options.max_audio_seconds)
        _ask(elsewhere, plan, options)
        plan.repeats = ids.repeats
    if not plan.rows:
        raise InputError(no_rows(named(given)))
    for codec in plan.codecs.values():
        codec.speed = _speed(codec.few)
    return plan


def _ask(utterances: Sequence[Utterance], plan: Plan, options: TranscribeOptions) -> None:
    """Count rows whose recordings are elsewhere, which are asked for their size and not fetched. A length is what the row says of it."""
    addresses = [str(utterance.audio) for utterance in utterances]
    with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
        sizes = list(threads.map(_size_or_fault, addresses))
    for utterance, size in zip(utterances, sizes, strict=True):
        plan.rows += 1
        if isinstance(size, int) and (fault := over_limit(size, options.spool_mb * 1_000_000)):
            size = InputError(fault)
        if isinstance(size, InputError):
            _bad(f"{utterance.name}: {shown(str(utterance.audio))}: {size}", plan)
            continue
        plan.elsewhere += 1
        plan.elsewhere_bytes += size or 0
        plan.unsized += size is None
        codec = plan.codecs.setdefault(_suffix(shown(str(utterance.audio)).removesuffix("?…")), Codec())
        codec.rows += 1
        codec.elsewhere += 1
        seconds = known_seconds(utterance)
        if seconds is None:
            plan.unmeasured += 1
        else:
            _add(seconds, utterance, codec, plan, options.max_audio_seconds)


def _size_or_fault(address: str) -> int | InputError | None:
    try:
        return remote_size(address)
    except InputError as error:
        return error


def _bad(reason: str, plan: Plan) -> None:
    plan.bad += 1
    if len(plan.reasons) < SHOWN:
        plan.reasons.append(" ".join(reason.split()))


def _add(length: float, utterance: Utterance, codec: Codec, plan: Plan, most_seconds: float) -> None:
    plan.seconds += length
    codec.seconds += length
    plan.over_limit += length > most_seconds
    if length > plan.longest:
        plan.longest, plan.longest_id = length, utterance.id


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
        _bad(str(error), plan)
        return
    audio = str(utterance.audio)
    codec = plan.codecs.setdefault(_suffix(audio), Codec())
    codec.rows += 1
    _add((there if end is None else min(end, there)) - begin, utterance, codec, plan, most_seconds)
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
            "elsewhere": codec.elsewhere,
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
        "elsewhere": plan.elsewhere,
        "elsewhere_bytes": plan.elsewhere_bytes,
        "elsewhere_unsized": plan.unsized,
        "elsewhere_unmeasured": plan.unmeasured,
        "codecs": codecs,
        "assumed_rtfx": rtfx,
        "gpu_hours_per_1000_hours": None if rtfx is None else 1000 / rtfx,
        "wall_seconds": None if rtfx is None else plan.seconds / rtfx,
        "weights_bytes": weights or None,
        "feature_bytes": round(
            clips_under_way(options.batch_size or SLOTS) * clip * (FEATURE_BYTES if options.features == "host" else SAMPLE_BYTES)
        ),
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
    held = "features" if options.features == "host" else "samples"
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
        f"memory          {_size(found['feature_bytes'])} of {held} at most on the host; on the device the weights and the engine's slots"
        + (f" ({_size(found['weights_bytes'])} of weights on disk)" if found["weights_bytes"] else ""),
        f"disk            about {_size(found['disk_bytes'])} for the journal and the rows, at 20 characters a second",
        "codec        rows      hours   a core decodes" + ("" if rtfx is None else f"   cores for {rtfx:g} times real time"),
    ]
    for name, codec in found["codecs"].items():
        speed = codec["rtfx_of_a_core"]
        row = f"{name:<10} {codec['rows']:>6} {codec['hours']:>10,.2f}   " + (
            ("not fetched" if codec["elsewhere"] else "cannot be decoded") if speed is None else f"{speed:,.0f} times real time"
        )
        lines.append(row + ("" if codec["cores"] is None else f"   {codec['cores']:,.1f}"))
    if plan.elsewhere:
        lines += _elsewhere(plan)
    if plan.bad:
        lines += [f"bad rows        {plan.bad}, the first reasons:", *(f"  {reason}" for reason in plan.reasons)]
    return "\n".join(lines)


def _elsewhere(plan: Plan) -> list[str]:
    unsized = f", {plan.unsized} of a size that their machines do not say" if plan.unsized else ""
    lines = [f"elsewhere       {plan.elsewhere} rows with {_size(plan.elsewhere_bytes)} to fetch{unsized}"]
    if plan.unmeasured:
        lines.append(f"not counted     {plan.unmeasured} of these rows, whose length is known when they are fetched")
    return lines


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
