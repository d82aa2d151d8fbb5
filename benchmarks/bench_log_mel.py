"""How fast samples become log-mel features on one CPU thread, and how far from float64 they are: arkfast on each instruction set, the
extractors of Transformers, faster-whisper and librosa.

What is not installed is left out. Every provider's features are checked against the float64 reference first,
and one that errs by more than it may is shown without a time. Times are CPU time, so that a busy machine changes them less.

    python benchmarks/bench_log_mel.py --out benchmarks/results
    env OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMEXPR_NUM_THREADS=1 pytest benchmarks/bench_log_mel.py --benchmark-only

The script sets these variables itself; pytest has loaded the libraries that read them by the time it comes here.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
from harness.results import machine, slug, version, write
from measure import THREAD_VARIABLES, interleaved, one_thread
from numpy.typing import NDArray
from report import markdown

from arkfast import _C
from arkfast.audio import SAMPLING_RATE, LogMel
from arkfast.audio.reference import log_mel_reference

N_MELS = 128
BASELINE = "transformers, torch"
Clips = list[NDArray[np.float32]]


class Shape(NamedTuple):
    """Clips of one length, given together."""

    name: str
    clips: int
    seconds: int


SHAPES = (Shape("10 s", 1, 10), Shape("30 s", 1, 30), Shape("40 x 10 s", 40, 10))


class Provider(NamedTuple):
    """One way to compute features [clips, 128, 100 · seconds]."""

    name: str
    run: Callable[[Clips], Any]
    tolerance: float
    """The largest error against float64 that it may have; that of float32 transforms for those of others."""
    ours: bool = False


def speech(seconds: int, seed: int) -> NDArray[np.float32]:
    """Harmonics of a gliding pitch in syllables, with pauses and a noise floor; always the same."""
    rng = np.random.default_rng(seed)
    t = np.arange(seconds * SAMPLING_RATE) / SAMPLING_RATE
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(4 * t + seed)) / SAMPLING_RATE
    voice = sum(np.sin(k * phase + k) / k**1.2 for k in range(1, 25))
    syllables = np.clip(np.sin(14 * t), 0, 1) ** 2 * (np.sin(1.3 * t) > -0.5)
    return (0.15 * syllables * voice + (1e-4 + 0.01 * syllables) * rng.standard_normal(len(t))).astype(np.float32)


def providers() -> Iterator[Provider]:
    """All that can run here."""
    for name in _C.instruction_sets():
        yield Provider(f"arkfast, {name}", functools.partial(ours, LogMel(N_MELS, instruction_set=name), "float32"), 1e-6, True)
    fastest = LogMel(N_MELS, instruction_set=_C.instruction_sets()[0])
    # bfloat16 keeps 8 bits: half a step of values below 2 is 2^-8
    yield Provider(f"arkfast, {fastest.instruction_set}, bfloat16", functools.partial(ours, fastest, "bfloat16"), 2**-8, True)
    yield from transformers_providers()
    if version("faster-whisper"):
        extractor = importlib.import_module("faster_whisper.feature_extractor").FeatureExtractor(feature_size=N_MELS)
        yield Provider("faster-whisper", lambda clips: [extractor(clip, padding=0)[:, : len(clip) // 160] for clip in clips], 1e-4)
    if version("librosa"):
        librosa = importlib.import_module("librosa")
        yield Provider("librosa", lambda clips: [librosa_features(librosa, clip) for clip in clips], 1e-4)


def ours(log_mel: LogMel, dtype: Literal["float32", "bfloat16"], clips: Clips) -> Any:
    return log_mel(clips, dtype=dtype)[0]


def transformers_providers() -> Iterator[Provider]:
    """Whisper's extractor as a whole, on its torch path and, where torch is not installed for it, its NumPy path."""
    from transformers import WhisperFeatureExtractor

    class NumpyPath(WhisperFeatureExtractor):
        def _torch_extract_fbank_features(self, waveform: Any, device: str = "cpu") -> Any:
            return self._np_extract_fbank_features(waveform, device)

    for name, kind in ((BASELINE, WhisperFeatureExtractor), ("transformers, NumPy", NumpyPath)):
        extractor = kind(feature_size=N_MELS)
        options: dict[str, Any] = {"sampling_rate": SAMPLING_RATE, "padding": "longest", "truncation": False, "return_tensors": "np"}
        yield Provider(name, lambda clips, extractor=extractor, options=options: extractor(clips, **options)["input_features"], 1e-4)


def librosa_features(librosa: Any, clip: NDArray[np.float32]) -> NDArray[np.float32]:
    mel = librosa.feature.melspectrogram(
        y=clip, sr=SAMPLING_RATE, n_fft=400, hop_length=160, n_mels=N_MELS, fmax=8000, pad_mode="reflect", dtype=np.float32
    )[:, :-1]
    log10 = np.log10(np.maximum(mel, 1e-10))
    return (np.maximum(log10, log10.max() - 8) + 4) / 4


def inputs(shape: Shape) -> Clips:
    return [speech(shape.seconds, seed) for seed in range(shape.clips)]


def largest_error(provider: Provider, clips: Clips) -> float:
    """Of all its features, against float64; the clips are of one length, so padding does not matter."""
    features = provider.run(clips)
    features = np.asarray(features.double() if hasattr(features, "double") else features, dtype=np.float64)
    return max(float(np.abs(own - log_mel_reference(clip, n_mels=N_MELS)[0]).max()) for own, clip in zip(features, clips, strict=True))


def measured(shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """A row for each provider: checked, then timed in turn with the others."""
    clips, everybody = inputs(shape), list(providers())
    errors = {provider.name: largest_error(provider, clips) for provider in everybody}
    right = [provider for provider in everybody if errors[provider.name] <= provider.tolerance]
    times = interleaved({provider.name: lambda provider=provider: provider.run(clips) for provider in right}, rounds=rounds)
    rows = []
    for provider in everybody:
        row: dict[str, Any] = {
            "group": "log_mel",
            "shape": {"clips": shape.clips, "seconds": shape.seconds},
            "shape_name": shape.name,
            "provider": provider.name,
            "ours": provider.ours,
            "largest_error": errors[provider.name],
            "check": "passed",
        }
        if taken := times.get(provider.name):
            row |= {"seconds": taken, "rounds": rounds, "x_real_time": shape.clips * shape.seconds / taken["p50"]}
            if baseline := times.get(BASELINE):
                row["ratio"] = baseline["p50"] / taken["p50"]
        else:
            row["check"] = f"failed: errs by {errors[provider.name]:.1e}, may by {provider.tolerance:.0e}"
        rows.append(row)
    return rows


def may_use_threads() -> list[str]:
    """The variables by which some library may use more than one thread."""
    return [name for name in THREAD_VARIABLES if os.environ.get(name) != "1"]


@pytest.mark.skipif(bool(may_use_threads()), reason=f"times are of one thread: set {', '.join(may_use_threads())} to 1")
@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name.replace(" ", ""))
@pytest.mark.parametrize("provider", providers(), ids=lambda provider: provider.name.replace(", ", "-"))
def test_log_mel(benchmark: Any, provider: Provider, shape: Shape) -> None:
    clips = inputs(shape)
    error = largest_error(provider, clips)
    assert error <= provider.tolerance, "it was not timed"
    benchmark.group = f"log-mel {shape.name} on cpu"
    benchmark.extra_info.update(device="cpu", provider=provider.name, largest_error=error)
    benchmark(provider.run, clips)
    benchmark.extra_info["x_real_time"] = shape.clips * shape.seconds / benchmark.stats.stats.median


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].replace("\n", " "))
    parser.add_argument("--out", type=Path, help="results go to OUT/cpu/log_mel-<date>.json")
    parser.add_argument("--rounds", type=int, default=31, help="interleaved rounds, of which the median counts")
    parser.add_argument("--only", action="append", choices=[shape.name for shape in SHAPES], help="a shape; may be given several times")
    parser.add_argument("--commit", help="the code's commit, where the folder is no git checkout")
    options = parser.parse_args(arguments)
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    result = {"name": "log_mel", **machine(torch.device("cpu"), options.commit), "time": time.strftime("%H:%M:%S")}
    result["versions"] |= {name: version(name) for name in ("faster-whisper", "librosa")}
    result["clock"] = "CPU time of one thread"
    result["rows"] = [row for shape in SHAPES if not options.only or shape.name in options.only for row in measured(shape, options.rounds)]
    print(markdown(result))
    if options.out:
        path = options.out / slug(None) / f"log_mel-{result['date']}.json"
        write(path, result)
        print(f"\n{path}")
    return 1 if any(row["ours"] and row["check"] != "passed" for row in result["rows"]) else 0


if __name__ == "__main__":
    one_thread()
    sys.exit(main())
