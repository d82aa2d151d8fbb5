"""Runs of several processes and of one, side by side, for tests that compare them: a world, launches, logs and their comparison."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav

RANKS = Path(__file__).with_name("ranks.py")
_spec = importlib.util.spec_from_file_location("ranks", RANKS)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
play = _module.play
CLIPS = 7


def make_world(root):
    """Two checkpoints of one vocabulary, one whose configuration calls two tensors one, and a manifest of seven clips."""
    tiny_checkpoint(root / "student", seed=1)
    tiny_checkpoint(root / "teacher", seed=2, hidden_size=64, num_attention_heads=4)
    rows = []
    for i in range(CLIPS):
        write_wav(root / f"{i}.wav", synthetic_speech(0.4 + 0.13 * i, seed=i))
        rows.append(json.dumps({"audio": f"{i}.wav", "text": "one two three"[: 3 + i], "id": f"clip{i}"}) + "\n")
    (root / "train.jsonl").write_text("".join(rows))
    apart = shutil.copytree(root / "student", root / "apart") / "model.safetensors"
    tensors = load_file(apart)
    head = tensors["model.embed_tokens.weight"].clone()
    head[: len(head) // 2] += 0.01
    save_file({**tensors, "lm_head.weight": head}, apart, metadata={"format": "pt"})
    (root / "junk.wav").write_bytes(b"RIFF and nothing more")
    bad = json.dumps({"audio": "junk.wav", "text": "one", "id": "bad", "duration": 0.5}) + "\n"
    (root / "bad.jsonl").write_text("".join([*rows, bad]))
    return root


def fields(world, out, **overrides):
    if "student_model" in overrides:
        overrides["student_model"] = world / overrides["student_model"]
    values = {
        "stage": "opd", "student_model": world / "student", "teacher_model": world / "teacher", "train_data": world / "train.jsonl",
        "output_dir": out, "per_device_train_batch_size": 1, "max_steps": 20, "learning_rate": 1e-4, "opd_top_k": 8,
        "asr_opd_max_new_tokens": 8, "dataloader_num_workers": 0, "seed": 3, "model_dtype": "float32", "num_threads": 1, "device": "cpu",
        "log_freq": 5, "gates": "off",
    }  # fmt: skip
    return {**values, **overrides}


def scenario(world, out, **options):
    """What ``ranks.play`` takes."""
    extra = {key: options.pop(key) for key in ("halt", "free", "stale") if key in options}
    config = fields(world, out, **options)
    return {"config": {key: str(value) if isinstance(value, Path) else value for key, value in config.items()}, **extra}


def together(world, root, runs, ranks=2, seconds=300):
    """Runs of ``ranks`` processes, one after the other: (folder under ``root``, options). They meet in a store that this process holds."""
    path = root / "scenarios.json"
    path.write_text(json.dumps([scenario(world, root / name, **options) for name, options in runs]))
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    logs = [root / f"rank{rank}.log" for rank in range(ranks)]
    processes = []
    for rank, log in enumerate(logs):
        with log.open("wb") as file:
            words = [sys.executable, RANKS, path, str(rank), str(ranks)]
            processes.append(subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=environment))
    codes = outcome(processes, seconds)
    assert codes == [0] * ranks, f"exit codes {codes}\n" + "\n".join(log.read_text(errors="replace")[-6000:] for log in logs)


def outcome(processes, seconds):
    """Exit codes, as soon as all have ended or one has failed; those that go on then are told to say where they stand, and killed."""
    deadline = time.monotonic() + seconds
    while any(process.poll() is None for process in processes) and not any(process.poll() for process in processes):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    codes = [process.poll() for process in processes]
    left = [process for process in processes if process.poll() is None]
    for process in left:
        process.send_signal(signal.SIGUSR2)
    if left:
        time.sleep(2)
    for process in left:
        process.kill()
        process.wait()
    return codes


def alone(world, out, **options):
    """A run of this one process."""
    play(scenario(world, out, **options))


def log(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out):
    return [(row["step"], row["epoch"], row["loss"], row["grad_norm"], row["positions"]) for row in log(out) if "loss" in row]


def assert_same_run(a, b, key_biases=1e-5):
    """Losses, gradient norms and weights are the same but for rounding.

    The gradient of a key's bias is next to nothing but rounding (what it adds to a query's scores is nearly alike for all keys, which the
    softmax ignores), and Adam divides it by its own size: of 20 updates of up to 1e-4 it may differ by a part of one.
    """
    ours, theirs = losses(a), losses(b)
    assert len(ours) == len(theirs)
    for x, y in zip(ours, theirs, strict=True):
        assert x[:2] == y[:2]
        assert x[4] == y[4]
        assert y[2] == pytest.approx(x[2], rel=1e-6)
        assert y[3] == pytest.approx(x[3], rel=1e-5)
    one, other = (load_file(out / "last" / "model.safetensors") for out in (a, b))
    assert one.keys() == other.keys()
    for name in one:
        bound = key_biases if name.endswith("k_proj.bias") else 1e-6
        assert (one[name] - other[name]).abs().max() <= bound, name


def assert_same_first_gradients(a, b):
    one, other = (torch.load(out / "first_gradients.pt", weights_only=True) for out in (a, b))
    assert one.keys() == other.keys()
    assert len(one) > 20
    for name in one:
        error = torch.linalg.vector_norm(one[name] - other[name]) / torch.linalg.vector_norm(one[name])
        assert error <= 1e-6, name


PART = {"save_freq": 3, "max_steps": 8}
ONE = {"micro_batches_per_step": 2}
