"""Reading the logs of runs while they go on: how far, how fast, which WER, how large a union."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from arkfast.quickstart.arms import Arm
from arkfast.quickstart.results import ArmRow, Rate
from arkfast.records import JsonObject


def records(folder: Path) -> list[JsonObject]:
    """The complete lines of a run's log; none before it starts."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def steps_done(folder: Path) -> int:
    """The last logged step of a run, read from the end of its log."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["step"]) if len(lines) > 1 else 0


def row_of(arm: Arm, *, done: bool, dev: Rate | None = None, test: Rate | None = None) -> ArmRow:
    """An arm's row of the table as its logs stand."""
    curve: list[tuple[int, float]] = []
    supports: list[float] = []
    seconds, before = 0.0, 0
    steps = 0
    for stage in arm.stages:
        for record in records(stage.folder):
            if "eval_wer" in record:
                if record["eval_wer"] is not None:  # references without a word have no rate
                    curve.append((before + record["step"], record["eval_wer"] / 100))
            else:
                seconds += record["time_per_step"]
                steps += 1
                if "opd_valid_topk_mean" in record:
                    supports.append(record["opd_valid_topk_mean"])
        before += stage.steps
    return ArmRow(
        arm=arm.name,
        state="done" if done else "running" if steps else "pending",
        dev=dev,
        test=test,
        support=sum(supports) / len(supports) if supports else None,
        steps=steps or None,
        total_steps=arm.steps,
        seconds=seconds or None,
        curve=tuple(curve),
        stage_begins=tuple(itertools.accumulate(stage.steps for stage in arm.stages[:-1])),
    )
