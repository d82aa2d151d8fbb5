"""A run that is killed again and again, on a disk that is full now and then, with workers that die, ends as if nothing had happened.

``ARKFAST_SOAK_STEPS`` says how many steps it takes (default 24); with 200 it is killed 20 times, meets a full disk twice and loses a worker
five times. ``ARKFAST_SOAK_SEED`` draws other moments. ``-s`` shows what happened.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav
from arkfast.train.checkpoints.tensors import damage

CHILD = Path(__file__).with_name("soak_child.py")
STEPS = int(os.environ.get("ARKFAST_SOAK_STEPS", "24"))
SEED = int(os.environ.get("ARKFAST_SOAK_SEED", "1"))
KILLS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
FULL, WORKER = "full disk", "worker"
TAKEN = {signal.SIGKILL: {-9}, signal.SIGTERM: {143, -15}, signal.SIGINT: {130, -2, 1}, FULL: {2}}
"""Exit codes by what ended a child: a signal that comes before the run listens ends it as it ends any Python program."""


def flags(world: Path, out: Path) -> list[str]:
    values: dict[str, Any] = {
        "stage": "opd", "student_model": world / "student", "teacher_model": world / "teacher", "train_data": world / "train.jsonl",
        "eval_data": world / "dev.jsonl", "eval_freq": 10, "output_dir": out, "max_steps": STEPS, "save_freq": 3, "learning_rate": 1e-4,
        "per_device_train_batch_size": 4, "batch_seconds": 3.0, "micro_batches_per_step": 3, "rollout_temperature": 1.0, "opd_top_k": 8,
        "asr_opd_max_new_tokens": 8, "gates": "off", "dataloader_num_workers": 1, "seed": 3, "model_dtype": "float32", "num_threads": 1,
        "device": "cpu", "ema_decay": 0.99, "async_save": True, "resume_from_checkpoint": "auto", "quiet": True,
    }  # fmt: skip
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


class Soak:
    """A run that is started again until it is done.

    Args:
        world: where its data stands.
        out: its folder.
        drawn: the moments.
    """

    def __init__(self, world: Path, out: Path, drawn: random.Random) -> None:
        self.world, self.out, self.drawn = world, out, drawn
        self.happened: Counter[str] = Counter()
        self.children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Soak:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children:
            child.kill()
            child.wait()

    def start(self, room: int = 0) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        with self.out.with_suffix(".log").open("ab") as log:
            words = [sys.executable, str(CHILD), str(room), *flags(self.world, self.out)]
            self.children.append(subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment))
        return self.children[-1]

    def said(self) -> str:
        return self.out.with_suffix(".log").read_text(errors="replace")

    def records(self) -> list[dict[str, Any]]:
        path = self.out / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def step(self) -> int:
        return max((row["step"] for row in self.records()), default=0)

    def disturbed(self, event: signal.Signals | str, *, worker: bool) -> None:
        """One child, until the event ends it."""
        process = self.start(self.drawn.randrange(20, 70) if event == FULL else 0)
        before = self.step()
        if worker:
            self.lose_a_worker(process)
        if isinstance(event, signal.Signals):
            if not worker and self.drawn.random() < 0.3:
                time.sleep(self.drawn.uniform(0.0, 6.0))  # at the start too, when nothing listens yet
            else:
                self.wait_for(process, before + self.drawn.randrange(1, 6))
                time.sleep(self.drawn.uniform(0.0, 0.3))
            process.send_signal(event)
        code = process.wait(timeout=300)
        assert code in TAKEN[event], f"{event!r}: exit code {code}: {self.said()[-3000:]}"
        self.happened[event if isinstance(event, str) else event.name] += 1
        print(f"{event if isinstance(event, str) else event.name}: exit code {code}, the log ends at step {self.step()}", flush=True)
        for path in (self.out / "checkpoints").glob("global_step_*"):
            assert damage(path, full=True) is None

    def wait_for(self, process: subprocess.Popen[bytes], step: int) -> None:
        """Until the log holds a step that this child has taken, or one past those that were logged before."""
        opened, deadline = False, time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            now = self.step()
            opened = opened or bool(workers_of(process))  # by then lines past the checkpoint are dropped
            if opened and now >= step:
                return
            time.sleep(0.02)

    def lose_a_worker(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            if found := workers_of(process):
                time.sleep(self.drawn.uniform(0.0, 0.5))
                with suppress(ProcessLookupError):  # an evaluation's end with it
                    os.kill(self.drawn.choice(found), signal.SIGKILL)
                    self.happened[WORKER] += 1
                    return
            time.sleep(0.02)
        raise AssertionError(f"no worker was seen: {self.said()[-3000:]}")


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    """The feature workers of a child."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"arkfast.data.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    except (FileNotFoundError, ProcessLookupError):
        return []


@pytest.fixture
def world(tmp_path: Path) -> Path:
    tiny_checkpoint(tmp_path / "student", seed=1)
    tiny_checkpoint(tmp_path / "teacher", seed=2, hidden_size=64, num_attention_heads=4)
    rows = []
    for i in range(11):
        write_wav(tmp_path / f"{i}.wav", synthetic_speech(0.4 + 0.09 * i, seed=i))
        rows.append(json.dumps({"audio": f"{i}.wav", "text": "one two", "id": f"clip{i}"}) + "\n")
    (tmp_path / "train.jsonl").write_text("".join(rows))
    (tmp_path / "dev.jsonl").write_text("".join(rows[:5]))
    return tmp_path


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers through /proc")
def test_a_run_that_is_disturbed_all_the_time_ends_as_one_that_is_not(world: Path) -> None:
    drawn = random.Random(SEED)
    with Soak(world, world / "whole", drawn) as whole, Soak(world, world / "run", drawn) as out:
        began = time.monotonic()
        assert whole.start().wait(timeout=900) == 0, whole.said()[-3000:]
        between = time.monotonic()
        kills, full, workers = STEPS // 10, max(1, STEPS // 100), max(1, STEPS // 40)
        events: list[signal.Signals | str] = [KILLS[i % len(KILLS)] for i in range(kills)] + [FULL] * full
        drawn.shuffle(events)
        losing = set(drawn.sample([i for i, event in enumerate(events) if event != FULL], min(workers, kills)))
        for i, event in enumerate(events):
            out.disturbed(event, worker=i in losing)
        assert out.start().wait(timeout=900) == 0, out.said()[-3000:]
    figures = ", ".join(f"{count} x {name}" for name, count in sorted(out.happened.items()))
    seconds = f"{between - began:.0f} s undisturbed, {time.monotonic() - between:.0f} s disturbed"
    print(f"\nsoak of {STEPS} steps, seed {SEED}: {figures}; {seconds}")

    def taken(soak: Soak) -> list[tuple[Any, ...]]:
        return [(row["step"], row.get("loss"), row.get("grad_norm"), row.get("eval_wer"), row.get("samples")) for row in soak.records()]

    assert taken(out) == taken(whole)
    assert out.happened[WORKER] == len(losing)
    for name in (
        "last/model.safetensors",
        "best/model.safetensors",
        "ema/model.safetensors",
        f"checkpoints/global_step_{STEPS}/optimizer.safetensors",
    ):
        ours, theirs = load_file(out.out / name), load_file(whole.out / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    assert "had loss" not in out.said(), "no resume found a loss that is another"
