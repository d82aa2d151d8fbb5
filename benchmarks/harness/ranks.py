"""Training over several processes: what a step costs on 1, 2, 4 and more GPUs, and whether a run goes on with another number of them.

Each count is one launch of ``arkfast train`` under torchrun, with the weights sharded (FSDP2) and rollouts on sharded weights. Every
process has as many clips in a step, so that perfect scaling keeps a step's time. Figures are those of the run's own log. Without a GPU two
processes rehearse it with gloo at toy sizes.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from shapes import TOKENS_PER_SECOND

from arkfast.testing import write_wav
from harness import recordings
from harness.clock import percentiles
from harness.goals import OUT_OF_TIME
from harness.results import ROOT, Result
from harness.runner import not_run

GROUP = "ranks"
CPU_RANKS = 2
"""Processes that a machine without a GPU rehearses."""
WARM, STEPS = 2, 10
"""Steps of a launch that are not counted, and all of them; the checkpoint that another number goes on from is written half-way."""
CLOSE = {"cuda": 2e-2, "cpu": 1e-5}
"""How near the loss of the first step after a resume must be to what it was, relative: sums are grouped differently."""
Run = Callable[[list[str], float, Path], "tuple[int | None, str]"]
"""(command, seconds, log) → exit status, None when the time ended, and the end of what it said."""


@dataclass(frozen=True)
class Size:
    """What is trained: a model of the decoder's width ``H``, taught by another of its size."""

    H: int
    clips: int
    """Of each process in a step."""
    seconds: float
    """Of each clip."""


SIZES = {"cuda": Size(896, 16, 10.0), "cpu": Size(48, 2, 1.0)}


def parsed(text: str) -> list[int]:
    """Numbers of processes, ascending, of a flag such as 1,2,4,8.

    Raises:
        ValueError: it is none.
    """
    counts = sorted({int(part) for part in text.split(",")})
    if counts[0] < 1:
        raise ValueError(f"--ranks {text}: numbers of processes from 1 up")
    return counts


def there(device: torch.device) -> int:
    """How many processes can run."""
    return torch.cuda.device_count() if device.type == "cuda" else CPU_RANKS


def shape(mode: str, count: int, device: torch.device, **more: int) -> dict[str, int | str]:
    """How results name a row: "step" and "rollout" of ``ranks`` processes, "resume" of what they left by ``to`` processes."""
    size = SIZES[device.type]
    return {"mode": mode, "H": size.H, "B": size.clips, "ranks": count, **more}


def prepare(folder: Path, counts: Sequence[int], device: torch.device) -> None:
    """The models, and recordings enough for a step of the most processes."""
    size = SIZES[device.type]
    recordings.checkpoint(folder / "student", size.H, device)
    recordings.checkpoint(folder / "teacher", size.H, device, noise=0.5)
    number = size.clips * math.lcm(*counts)
    rows = []
    for i, clip in enumerate(recordings.signals([size.seconds] * number)):
        write_wav(folder / f"{i}.wav", clip)
        rows.append(json.dumps({"audio": f"{i}.wav", "text": "one", "id": f"clip {i}", "language": "en"}) + "\n")
    (folder / "rows.jsonl").write_text("".join(rows), encoding="utf-8")


def command(folder: Path, count: int, device: torch.device, out: Path, *more: str) -> list[str]:
    """A launch of ``count`` processes."""
    size, python = SIZES[device.type], sys.executable
    flags = {
        "student_model": folder / "student", "teacher_model": folder / "teacher", "train_data": folder / "rows.jsonl", "output_dir": out,
        "per_device_train_batch_size": size.clips, "max_steps": STEPS, "save_freq": STEPS // 2, "sharding": "optimizer",
        "asr_opd_max_new_tokens": round(TOKENS_PER_SECOND * size.seconds), "gates": "off", "calibration_batches": 0, "num_threads": 1,
        "dataloader_num_workers": 2 if device.type == "cuda" else 0, "device": device.type, "seed": 1,
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    launcher = [python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), str(ROOT / "scripts" / "train.py")]
    return [*launcher, *words, *more]


def logged(out: Path) -> list[Result]:
    """The steps of a run's log."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines() if (out / "metrics.jsonl").exists() else []
    return [row for row in map(json.loads, lines) if "loss" in row]


def measure(
    counts: Sequence[int], device: torch.device, folder: Path, seconds: Callable[[], float], run: Run, log: Path
) -> Iterator[Result]:
    """Rows of every count, each as soon as it is there.

    Args:
        folder: an empty one for models, clips and runs.
        seconds: how many are left.
        run: starts a command.
        log: where commands write what they say.
    """
    alone: dict[str, tuple[int, float]] = {}
    before: int | None = None
    possible = [count for count in counts if count <= there(device)]
    if possible:
        prepare(folder, possible, device)
    for count in counts:
        if count not in possible:
            what = "GPUs" if device.type == "cuda" else "processes, the most that are rehearsed without a GPU"
            yield not_run(
                GROUP, shape("step", count, device), device.type, f"{count} processes wanted, and there are {there(device)} {what}"
            )
            continue
        out = folder / f"{count}"
        trouble = launched(run, command(folder, count, device, out), seconds(), log)
        steps = logged(out)
        if trouble is None and (len(steps) != STEPS or not all(isinstance(row["loss"], float) for row in steps)):
            trouble = f"{len(steps)} of {STEPS} steps were logged, or a loss is no number"
        if trouble is not None:
            yield not_run(GROUP, shape("step", count, device), device.type, trouble)
            continue
        for mode, field in (("step", "time_per_step"), ("rollout", "rollout_time_max")):
            taken = percentiles([float(row[field]) for row in steps[WARM:]])
            first, once = alone.setdefault(mode, (count, taken["p50"]))
            share = 100 * once / taken["p50"]
            audio = sum(float(row["audio_seconds"]) for row in steps[WARM:]) / len(steps[WARM:])
            yield {
                "group": GROUP, "shape": shape(mode, count, device), "device": device.type, "provider": "ours", "ours": True,
                "check": "passed", "seconds": taken, "samples": STEPS - WARM, "x_real_time": audio / taken["p50"],
                "percent_of_fewest": share,
                "note": f"{share:.0f} % of perfect scaling from {first}; {'NCCL' if device.type == 'cuda' else 'gloo'}, weights sharded",
            }  # fmt: skip
        if before is not None:
            yield resumed(folder, count, before, device, seconds(), run, log, steps)
        before = count


def resumed(
    folder: Path, count: int, fewer: int, device: torch.device, seconds: float, run: Run, log: Path, steps: Sequence[Result]
) -> Result:
    """A row that says whether ``fewer`` processes go on from the half of what ``count`` processes did, ``steps``, with the same loss."""
    out, half = folder / f"{count}-{fewer}", STEPS // 2
    saved = folder / f"{count}" / "checkpoints" / f"global_step_{half}"
    more = ("--resume_from_checkpoint", str(saved), "--micro_batches_per_step", str(count))
    trouble = launched(run, command(folder, fewer, device, out, *more), seconds, log)
    row = {"group": GROUP, "shape": shape("resume", count, device, to=fewer), "device": device.type, "provider": "ours", "ours": True}
    if trouble is not None:
        return {**row, "check": "not run" if trouble == OUT_OF_TIME else f"failed: {trouble}", "error": trouble}
    then, now = steps[half]["loss"], next((one["loss"] for one in logged(out) if one["step"] == half + 1), None)
    off = math.inf if now is None else abs(now - then) / abs(then)
    right = off <= CLOSE[device.type]
    said = f"step {half + 1} had loss {then:.6g} and has {'none' if now is None else f'{now:.6g}'}"
    return {**row, "check": "passed" if right else f"failed: {said}", "note": said}


def launched(run: Run, words: list[str], seconds: float, log: Path) -> str | None:
    """Runs a command; what is wrong, None when nothing is."""
    if seconds <= 0:
        return OUT_OF_TIME
    status, said = run(words, seconds, log)
    if status is None:
        return OUT_OF_TIME
    return None if status == 0 else f"the launch ended with status {status}: {(said.strip().splitlines() or ['it said nothing'])[-1]}"
