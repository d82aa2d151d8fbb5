"""The launcher with the real torchrun, and with the real trainer, on two hosts that are both here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def test_two_hosts_meet_in_one_world(cluster, free_port) -> None:
    """The processes of both hosts add up to one world."""
    root = cluster.folder / "a checkout"
    (root / "scripts").mkdir(parents=True)
    (root / "scripts" / "on_host.py").write_text((ROOT / "scripts" / "on_host.py").read_text())
    (root / "scripts" / "train.py").write_text(
        "import sys, torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "total = torch.ones(1)\n"
        "dist.all_reduce(total)\n"
        "sys.stdout.write(f'world {int(total)}\\n')\n"  # one write: print makes several, which two processes' could come between
        "dist.barrier()\n"
        "dist.destroy_process_group()\n"
    )
    cluster.hostfile("127.0.0.1 slots=1\nlocalhost slots=2\n")  # workers find each other by these names, so they must be real
    (cluster.folder / "py").write_text(
        f'#!/usr/bin/env bash\nif [ "$2" = check ]; then echo same; exit; fi\nexec env OMP_NUM_THREADS=1 {sys.executable} "$@"\n'
    )
    variables = {"ROOT": str(root), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
    done = cluster.launch("--device", "cpu", **variables)
    logs = "".join(path.read_text() for path in sorted(cluster.run_dir.glob("node_*.out")))
    assert done.returncode == 0, done.stdout + logs
    assert logs.count("world 3") == 3


@pytest.fixture
def real(cluster, free_port) -> dict[str, str]:
    """Settings of a tiny run on two hosts, both of them here, with a process each."""
    from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav

    tiny_checkpoint(cluster.folder / "student", seed=1)
    tiny_checkpoint(cluster.folder / "teacher", seed=2)
    rows = []
    for i in range(4):
        write_wav(cluster.folder / f"{i}.wav", synthetic_speech(0.5, seed=i))
        rows.append({"audio": f"{i}.wav", "text": "one two", "id": f"clip{i}"})
    (cluster.folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cluster.hostfile("127.0.0.1 slots=1\nlocalhost slots=1\n")
    return {
        "PY": sys.executable, "MASTER_PORT": str(free_port), "STUDENT_MODEL": str(cluster.folder / "student"),
        "TEACHER_MODEL": str(cluster.folder / "teacher"), "TRAIN_DATA": str(cluster.folder / "train.jsonl"), "MAX_STEPS": "100000",
        "WARMUP_STEPS": "0", "PER_DEVICE_TRAIN_BATCH_SIZE": "1", "OPD_TOP_K": "8", "ASR_OPD_MAX_NEW_TOKENS": "4",
        "DATALOADER_NUM_WORKERS": "0", "OMP_NUM_THREADS": "1", "STOP_GRACE": "60",
    }  # fmt: skip


def wait_for_steps(cluster, process: subprocess.Popen[str], steps: int) -> None:
    deadline, log = time.monotonic() + 180, cluster.run_dir / "train" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= steps):
        assert time.monotonic() < deadline, "the run did not start"
        time.sleep(0.2)


def logged_steps(cluster) -> list[int]:
    return [json.loads(line)["step"] for line in (cluster.run_dir / "train" / "metrics.jsonl").read_text().splitlines()]


def test_a_real_run_on_two_hosts_saves_when_it_is_told_to_stop(cluster, real: dict[str, str]) -> None:
    process = cluster.start("--device", "cpu", "--num_threads", "1", "--gates", "off", **real)
    wait_for_steps(cluster, process, 3)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 143, out + error
    steps = logged_steps(cluster)
    assert steps == list(range(1, len(steps) + 1))
    (checkpoint,) = (cluster.run_dir / "train" / "checkpoints").glob("global_step_*")
    assert json.loads((checkpoint / "trainer_state.json").read_text())["step"] == steps[-1] >= 3


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the process through /proc")
def test_a_real_run_goes_on_when_a_process_is_killed(cluster, real: dict[str, str]) -> None:
    """The killed process belongs to the second host, so the first host's torchrun does not count a restart of its own."""
    process = cluster.start(
        "--device", "cpu", "--num_threads", "1", "--gates", "off", **{**real, "MAX_STEPS": "40", "SAVE_FREQ": "2", "MAX_RESTARTS": "1"}
    )
    wait_for_steps(cluster, process, 3)
    killed = []
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        try:
            words, environment = (Path(f"/proc/{pid}/{name}").read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:
            continue  # it ended meanwhile
        ours = b"scripts/train.py" in words and str(cluster.run_dir / "train").encode() in words
        if ours and b"torch.distributed.run" not in words and b"RANK=1" in environment:
            killed.append(pid)
    assert len(killed) == 1
    os.kill(killed[0], signal.SIGKILL)
    try:
        out, error = process.communicate(timeout=240)
    finally:
        process.terminate()
    assert process.returncode == 0, out + error
    assert logged_steps(cluster) == list(range(1, 41))
