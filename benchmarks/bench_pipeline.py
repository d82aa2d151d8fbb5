"""How much faster feature workers make batches than a plain loop over the same files, and where the time goes.

    python benchmarks/bench_pipeline.py [--audio FOLDER] [--workers 2] [--clips 200] [--rounds 5] [--batch_size 8] [--json FILE]

Throughput is audio seconds per wall second, batches collated in the consumer; median and best of interleaved rounds, as on a machine with
other work to do only the best says what the cores can. A round's clock starts with the first clip delivered, so the workers' start-up
(given apart) is not in it. CPU is that of consumer and workers together, start-up left out: what workers cost over a plain loop, however
busy the machine. Without ``--audio`` synthetic clips of 10 s are written in three formats. Stages are measured in one process, by clip,
in CPU time; "transfer" is writing a clip's features into shared memory and copying them out.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import soundfile

from arkfast import audio
from arkfast.audio import LogMel
from arkfast.data import collate, extract
from arkfast.data.pipeline import FeatureItem, FeaturePipeline
from arkfast.data.pool import SLOT_BYTES
from arkfast.data.worker import dump, load
from arkfast.files import json_text, write_text
from arkfast.models.arkasr.prompt import Prompt
from arkfast.records import Utterance

FORMATS = (("wav 16 kHz", "wav", 16000, 1), ("flac 44.1 kHz stereo", "flac", 44100, 2), ("mp3 48 kHz", "mp3", 48000, 1))
SECONDS = 10.0
PROMPT = Prompt(prefix=(1, 2), audio_id=3, suffix=(4, 5, 6))
PIPE_SLOT = 1 << 13  # room for a request, not for features: these then take the pipe


def synthetic(folder: Path, count: int = 20) -> dict[str, list[Path]]:
    """Clips of coloured noise in syllables: as hard to decode as speech, and reproducible."""
    found: dict[str, list[Path]] = {}
    for name, suffix, rate, channels in FORMATS:
        for i in range(count):
            random = np.random.default_rng(i)
            n = int(SECONDS * rate)
            noise = np.cumsum(random.standard_normal((n, channels)), axis=0)
            noise -= np.stack([np.convolve(noise[:, c], np.ones(64) / 64, mode="same") for c in range(channels)], axis=1)
            envelope = np.abs(np.sin(2 * np.pi * 2.3 * np.arange(n) / rate))[:, None]
            path = folder / f"{i}_{rate}.{suffix}"
            soundfile.write(path, 0.2 * envelope * noise / np.abs(noise).max(), rate)
            found.setdefault(name, []).append(path)
    return found


def stages(utterances: list[Utterance], log_mel: LogMel, batch_size: int) -> dict[str, float]:
    """Median CPU milliseconds of a clip in each stage."""
    memory = memoryview(bytearray(1 << 23))
    taken: dict[str, list[float]] = {name: [] for name in ("read + decode", "to 16 kHz", "log-mel", "transfer", "collate")}

    def timed(work: Callable[[], Any]) -> tuple[float, Any]:
        started = time.process_time()
        result = work()
        return 1e3 * (time.process_time() - started), result

    kept: list[np.ndarray] = []
    for utterance in utterances:
        path = str(utterance.audio)
        rate = soundfile.info(path).samplerate
        decode, _ = timed(lambda path=path, rate=rate: audio.load(path, sampling_rate=rate))
        whole, samples = timed(lambda path=path: audio.load(path))
        spectrum, (features, _) = timed(lambda samples=samples: log_mel([samples]))
        transfer, copy = timed(lambda features=features: dump(features, memory) or load(memory))
        kept.append(copy[0])
        for name, value in zip(taken, (decode, max(whole - decode, 0.0), spectrum, transfer), strict=False):
            taken[name].append(value)
        if len(kept) == batch_size:
            rows = [utterance] * batch_size
            taken["collate"].append(timed(lambda rows=rows, kept=kept: collate(rows, kept, PROMPT))[0] / batch_size)
            kept = []
    return {name: statistics.median(values) if values else 0.0 for name, values in taken.items()}


@dataclasses.dataclass(frozen=True)
class Round:
    """What one pass over the clips took."""

    rate: float
    """Audio seconds per wall second, after the first clip."""
    start: float
    """Seconds until the first clip."""
    cpu: float
    """CPU seconds of this process and of the children that ended."""


def run(items: Iterable[FeatureItem], batch_size: int) -> Round:
    """Consume a stream in collated batches."""
    cpu, started = cpu_seconds(), time.perf_counter()
    stream: Iterator[FeatureItem] = iter(items)
    next(stream)
    first = time.perf_counter()
    seconds = 0.0
    while batch := list(itertools.islice(stream, batch_size)):
        features = [item.features for item in batch if isinstance(item.features, np.ndarray)]
        seconds += collate([item.utterance for item in batch], features, PROMPT).seconds
    return Round(rate=seconds / (time.perf_counter() - first), start=first - started, cpu=cpu_seconds() - cpu)


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure(utterances: list[Utterance], log_mel: LogMel, *, workers: int, rounds: int, batch_size: int) -> dict[str, dict[str, float]]:
    """Each provider's throughput, start-up and CPU, over interleaved rounds."""

    def plain(rows: list[Utterance]) -> Iterator[FeatureItem]:
        return (FeatureItem(u, extract(u, log_mel)) for u in rows)

    def piped(count: int, slots: tuple[int, int], rows: list[Utterance]) -> Iterator[FeatureItem]:
        with mock.patch("arkfast.data.pool.SLOT_BYTES", slots):
            yield from FeaturePipeline(log_mel, workers=count, prefetch=8).features(rows)

    providers: dict[str, Callable[[list[Utterance]], Iterator[FeatureItem]]] = {
        "plain loop": plain,
        "1 worker": functools.partial(piped, 1, SLOT_BYTES),
        f"{workers} workers": functools.partial(piped, workers, SLOT_BYTES),
        f"{workers} workers, no shared memory": functools.partial(piped, workers, (PIPE_SLOT, 0)),
    }
    # Starting costs the CPU of a stream of a few clips less that of these clips.
    few = utterances[: workers + 1]
    starting = {name: max(run(make(few), batch_size).cpu - run(plain(few), batch_size).cpu, 0.0) for name, make in providers.items()}
    found: dict[str, list[Round]] = {name: [] for name in providers}
    for _ in range(rounds):
        for name, make in providers.items():
            found[name].append(run(make(utterances), batch_size))
    return {
        name: {
            "rate": statistics.median(r.rate for r in runs),
            "best_rate": max(r.rate for r in runs),
            "start": statistics.median(r.start for r in runs),
            "cpu_ms": 1e3 * (statistics.median(r.cpu for r in runs) - starting[name]) / len(utterances),
        }
        for name, runs in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--audio", type=Path, help="a folder of recordings of at most 30 s, in place of synthetic clips")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clips", type=int, default=200, help="clips in a round; the files are gone over as often as that takes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    log_mel = LogMel()
    results: dict[str, Any] = {
        "machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version(), "backend": log_mel.backend,
        "date": time.strftime("%Y-%m-%d"), "workers": options.workers, "clips": options.clips, "rounds": options.rounds,
        "formats": {},
    }  # fmt: skip
    print(
        f"{results['machine']}, {results['cores']} cores, log-mel {log_mel.backend}; {options.clips} clips a round, {options.rounds} rounds"
    )
    with tempfile.TemporaryDirectory() as folder:
        if options.audio:
            files = sorted(path for path in options.audio.iterdir() if path.suffix in {".wav", ".flac", ".mp3", ".ogg"})
            groups = {suffix: list(paths) for suffix, paths in itertools.groupby(sorted(files, key=lambda p: p.suffix), lambda p: p.suffix)}
        else:
            groups = synthetic(Path(folder))
        for name, paths in groups.items():
            utterances = [Utterance(id=str(i), audio=str(paths[i % len(paths)])) for i in range(options.clips)]
            shares = stages(utterances[: max(8 * options.batch_size, 40)], log_mel, options.batch_size)
            speed = measure(utterances, log_mel, workers=options.workers, rounds=options.rounds, batch_size=options.batch_size)
            results["formats"][name] = {"stages_ms": shares, "providers": speed}
            report(name, shares, speed)
    if options.json:
        write_text(options.json, json_text(results, indent=2) + "\n")


def report(name: str, shares: dict[str, float], speed: dict[str, dict[str, float]]) -> None:
    """Print one format's two tables."""
    print(f"\n{name}")
    total = sum(shares.values())
    for stage, milliseconds in shares.items():
        print(f"  {stage:<28} {milliseconds:8.3f} ms of CPU a clip {milliseconds / total:6.1%}")
    base = speed["plain loop"]
    for provider, figures in speed.items():
        median, best = figures["rate"] / base["rate"], figures["best_rate"] / base["best_rate"]
        print(
            f"  {provider:<28} {figures['rate']:8.0f} x real time, {median:.2f} x the plain loop (best rounds {best:.2f} x); "
            f"{figures['cpu_ms']:.2f} ms of CPU a clip, first clip after {figures['start']:.2f} s"
        )


if __name__ == "__main__":
    main()
