"""The decoding engine against Transformers: a decode step, the encoder, the prompts, and clips of mixed lengths from features to ids.

The mode "transcribe" is all of it, as transcription and rollouts run it. ``--mixed`` runs that alone, on a CPU with a model of a few
million parameters, and tells wall time from CPU time.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from harness import engine_passes, engine_step, engine_transcribe
from harness.ceilings import product_width
from harness.clock import percentiles
from harness.runner import main
from harness.suite import Entry, Provider, Row, Suite, Work, complaint, device_here
from shapes import MIXED_CLIPS, Shape, clip_shape, engine_shapes, mixed_seconds


class Mode(NamedTuple):
    """What a suite needs of one of its modes."""

    inputs: Callable[[Shape, torch.device, int], Any]
    oracle: Callable[[Shape, Any], Any]
    providers: Callable[[Shape, torch.device], list[Provider]]
    work: Callable[[Shape], Work]


MODES = {
    "step": Mode(engine_step.inputs, engine_step.oracle, engine_step.providers, engine_step.work),
    "encoder": Mode(
        engine_passes.encoder_inputs, engine_passes.encoder_oracle, engine_passes.encoder_providers, engine_passes.encoder_work
    ),
    "prefill": Mode(
        engine_passes.prefill_inputs, engine_passes.prefill_oracle, engine_passes.prefill_providers, engine_passes.prefill_work
    ),
    "transcribe": Mode(engine_transcribe.inputs, engine_transcribe.oracle, engine_transcribe.providers, engine_transcribe.work),
}


def work(shape: Shape) -> Work:
    return MODES[shape.mode].work(shape)


def columns(shape: Shape, row: Row) -> Row:
    """The share of the bare product's rate, since a phase is many products; times real time or time a clip, which the note says too."""
    taken, found, said = row["seconds"]["p50"], {}, [row["note"]] if row["note"] else []
    if "percent_of_mm" in row:
        product = 2 * shape.T * shape.V * product_width(shape)
        found["percent_of_mm"] = row["percent_of_mm"] * work(shape).flop / product
    if shape.mode == "transcribe":
        found["x_real_time"] = sum(mixed_seconds(shape.H, shape.B)) / taken
        said.append(f"{found['x_real_time']:,.0f} times real time, {row['decode_steps']} steps")
    elif shape.B:
        found["ms_per_clip"] = 1e3 * taken / shape.B
        said.append(f"{found['ms_per_clip']:.3g} ms a clip")
    return {**found, "note": "; ".join(said)}


SUITE = Suite(
    name="engine",
    shapes=engine_shapes,
    inputs=lambda shape, device, seed: MODES[shape.mode].inputs(shape, device, seed),
    # The model is shared, and its weights, which every call reads, empty any cache.
    set_bytes=lambda shape: work(shape).read,
    oracle=lambda shape, x: MODES[shape.mode].oracle(shape, x),
    providers=lambda shape, device: MODES[shape.mode].providers(shape, device),
    work=work,
    ceilings=("copy", "mm"),
    columns=columns,
    queued=False,
)


def test_engine(entry: Entry, timed: Any) -> None:
    timed(entry)


def mixed(threads: int, rounds: int) -> int:
    """Prints both ways through clips of mixed lengths side by side; 1 when an answer is wrong."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # Threads that wait by spinning count as CPU time, and on a busy machine keep each other from the cores for seconds.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_WAIT_POLICY": "passive"})
    device = device_here()
    torch.set_num_threads(threads)
    shape = clip_shape(192 if device.type == "cpu" else 896, MIXED_CLIPS[device.type], "transcribe")
    audio = sum(mixed_seconds(shape.H, shape.B))
    x = SUITE.inputs(shape, device, 0)
    oracle, providers = SUITE.oracle(shape, x), SUITE.providers(shape, device)
    print(f"{shape.B} clips, {audio:.0f} s of audio, the longest {max(x.batch.mel_lens.tolist()) / 100:.1f} s; {threads} threads, {device}")
    for provider in providers:
        wrong = complaint(provider, x, oracle)
        if wrong is not None:
            print(f"{provider.name}: {wrong}; nothing was timed")
            return 1
    clocks = {"wall": time.perf_counter, "CPU": time.process_time}
    taken: dict[str, dict[str, list[float]]] = {provider.name: {name: [] for name in clocks} for provider in providers}
    for _ in range(rounds):
        for provider in providers:
            begun = {name: clock() for name, clock in clocks.items()}
            provider.run(x)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            for name, clock in clocks.items():
                taken[provider.name][name].append(clock() - begun[name])
    for name in clocks:
        middle = {provider: percentiles(times[name])["p50"] for provider, times in taken.items()}
        for provider, seconds in middle.items():
            print(f"{name:<5}{provider:<10}{seconds:8.3f} s, {audio / seconds:8.0f} times real time")
        print(f"{name:<5}ratio     {middle['generate'] / middle['ours']:8.2f} x")
    for provider in providers:
        if provider.extra is not None:
            print(f"{provider.name}: {provider.extra(x)['decode_steps']} decode steps")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--mixed", action="store_true", help="clips of mixed lengths alone, in wall and CPU time")
    parser.add_argument("--threads", type=int, default=2, help="of a CPU; with --mixed")
    parser.add_argument("--rounds", type=int, default=3, help="calls of each provider; with --mixed")
    options, rest = parser.parse_known_args()
    if options.mixed:
        sys.exit(mixed(options.threads, options.rounds))
    sys.argv[1:] = rest
    main(SUITE)
