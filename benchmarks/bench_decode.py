"""How fast recordings become samples: libsndfile, PyAV and ``arkfast.audio.load``, in audio-seconds per CPU-second of one core.

Files are made on the fly in a temporary folder. Each provider's length is checked before its
time is taken; rounds are interleaved, so that a busy machine slows all alike, and medians are shown with the 20th and 80th percentiles.

    python benchmarks/bench_decode.py --seconds 60 --rounds 7 --out decode.json
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from arkfast.audio import load
from arkfast.files import json_text, write_text
from arkfast.installation import install_hint

try:
    import av
except ModuleNotFoundError:
    av: ModuleType | None = None  # its rows and columns are left out


class File(NamedTuple):
    """One file of the benchmark."""

    name: str
    rate: int
    channels: int
    container: str
    codec: str
    extra: float
    """Seconds that its samples may outlast what was put in: the filling of an encoder's last frame."""


SNDFILE = (
    File("wav 16k", 16000, 1, "WAV", "PCM_16", 0),
    File("wav 44.1k stereo", 44100, 2, "WAV", "PCM_16", 0),
    File("flac 16k", 16000, 1, "FLAC", "PCM_16", 0),
    File("flac 44.1k stereo", 44100, 2, "FLAC", "PCM_16", 0),
    File("mp3 16k", 16000, 1, "MP3", "MPEG_LAYER_III", 0),
    File("mp3 44.1k stereo", 44100, 2, "MP3", "MPEG_LAYER_III", 0),
    File("vorbis 16k", 16000, 1, "OGG", "VORBIS", 0),
    File("opus 16k", 16000, 1, "OGG", "OPUS", 0),
    File("opus 48k", 48000, 1, "OGG", "OPUS", 0),
)
PYAV = (
    File("m4a 16k", 16000, 1, "ipod", "aac", 0.1),
    File("m4a 44.1k stereo", 44100, 2, "ipod", "aac", 0.1),
    File("webm opus 48k", 48000, 1, "webm", "libopus", 0.1),
)


def babble(seconds: float, rate: int, channels: int) -> NDArray[np.float32]:
    """[n, channels] harmonics of a gliding pitch in bursts, over noise: as hard to code as speech, and always the same."""
    rng = np.random.default_rng(0)
    t = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(4.4 * t)) / rate
    voice = sum(np.sin(k * phase + k) / k for k in range(1, 20))
    mono = 0.1 * np.clip(np.sin(14.5 * t), 0, 1) * voice + 0.003 * rng.standard_normal(len(t))
    return np.stack([np.roll(mono, 100 * c) for c in range(channels)], axis=1).astype(np.float32)


def write(path: Path, file: File, samples: NDArray[np.float32]) -> None:
    if file in SNDFILE:
        soundfile.write(path, samples, file.rate, format=file.container, subtype=file.codec)
        return
    assert av is not None
    layout = "stereo" if file.channels == 2 else "mono"
    with av.open(str(path), "w", format=file.container) as container:
        track = container.add_stream(file.codec, rate=file.rate, layout=layout)
        track.format = track.codec_context.codec.audio_formats[0].name
        track.bit_rate = 64000 * file.channels
        convert = av.AudioResampler(format=track.format.name, layout=layout, rate=file.rate)
        for at in range(0, len(samples), 1024):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[at : at + 1024].T), "fltp", layout)
            frame.rate, frame.pts = file.rate, at
            for converted in convert.resample(frame):
                container.mux(track.encode(converted))
        for converted in convert.resample(None):
            container.mux(track.encode(converted))
        container.mux(track.encode(None))


def decode_soundfile(path: Path) -> float:
    """All samples at the file's rate; how many seconds."""
    samples, rate = soundfile.read(path, dtype="float32")
    return len(samples) / rate


def decode_pyav(path: Path) -> float:
    assert av is not None
    with av.open(str(path)) as container:
        track = container.streams.audio[0]
        track.codec_context.thread_count = 1
        frames = [frame.to_ndarray() for frame in container.decode(track)]
        rate, channels, planar = track.codec_context.sample_rate, track.codec_context.channels, track.codec_context.format.is_planar
    samples = np.concatenate(frames, axis=1)
    return samples.shape[1] / rate / (1 if planar else channels)


def load_native(path: Path, rate: int) -> float:
    return len(load(path, sampling_rate=rate)) / rate


def load_16k(path: Path) -> float:
    return len(load(path)) / 16000


def providers(file: File) -> dict[str, Callable[[Path], float]]:
    """Name → what it does with a path; what cannot read the file, or is not installed, is left out."""
    table: dict[str, Callable[[Path], float]] = {}
    if file in SNDFILE:
        table["soundfile"] = decode_soundfile
    if av is not None:
        table["pyav"] = decode_pyav
    table["load at its rate"] = lambda path: load_native(path, file.rate)
    table["load at 16 kHz"] = load_16k
    return table


def measure(seconds: float, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """One row per file and provider.

    Raises:
        SystemExit: a provider's length is not the file's; no times are shown then.
    """
    files = SNDFILE + (PYAV if av is not None else ())
    jobs: list[tuple[File, str, Callable[[Path], float], Path]] = []
    for file in files:
        path = folder / file.name.replace(" ", "-")
        write(path, file, babble(seconds, file.rate, file.channels))
        for name, provider in providers(file).items():
            got = provider(path)
            # PyAV alone keeps what an encoder adds at both ends; load and libsndfile leave it out.
            allowed = max(file.extra, 0.2) if name == "pyav" else file.extra
            if not -0.001 <= got - seconds <= allowed + 0.001:
                raise SystemExit(f"bench_decode: {name} gives {got:.3f} s of {file.name}, which has {seconds:.3f} s")
            jobs.append((file, name, provider, path))
    times: list[list[float]] = [[] for _ in jobs]
    for _ in range(rounds):
        for job, taken in zip(jobs, times, strict=True):
            begin = time.process_time()
            job[2](job[3])
            taken.append(time.process_time() - begin)
    rows = []
    for (file, name, _, path), taken in zip(jobs, times, strict=True):
        low, middle, high = (float(q) for q in np.percentile(taken, (20, 50, 80)))
        rows.append(
            {
                "file": file.name,
                "provider": name,
                "rate": file.rate,
                "channels": file.channels,
                "seconds": seconds,
                "bytes": path.stat().st_size,
                "cpu_s": {"p20": low, "p50": middle, "p80": high},
                "x_real_time": seconds / middle,
            }
        )
    return rows


def device() -> dict[str, Any]:
    """What the figures were taken on."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    versions = {"python": platform.python_version(), "numpy": np.__version__, "libsndfile": soundfile.__libsndfile_version__}
    for package in ("soundfile", "soxr", "av"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {"cpu": cpu, "cores": os.cpu_count(), "versions": versions, "date": time.strftime("%Y-%m-%d")}


def table(rows: list[dict[str, Any]]) -> str:
    """Files down, providers across, in audio-seconds per CPU-second; then what resampling costs of a load."""
    names = list(dict.fromkeys(row["provider"] for row in rows))
    speed = {(row["file"], row["provider"]): row["x_real_time"] for row in rows}
    lines = [f"{'audio-s per CPU-s':20s}" + "".join(f"{name:>18s}" for name in names) + f"{'resampling':>14s}"]
    for file in dict.fromkeys(row["file"] for row in rows):
        cells = [f"{speed[file, name]:18,.0f}" if (file, name) in speed else f"{'–':>18s}" for name in names]
        share = 1 - speed[file, "load at 16 kHz"] / speed[file, "load at its rate"]
        resampled = next(row["rate"] for row in rows if row["file"] == file) != 16000
        lines.append(f"{file:20s}" + "".join(cells) + (f"{share:13.0%} " if resampled else f"{'none':>13s} "))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each file")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds, of which the median counts")
    parser.add_argument("--out", type=Path, help="where to write the rows as JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options.seconds, options.rounds, Path(folder))
    print(table(rows))
    if av is None:
        print(f"PyAV is not installed: m4a and webm are left out; {install_hint('containers')}", file=sys.stderr)
    if options.out:
        write_text(options.out, json_text({"name": "decode", "device": device(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
