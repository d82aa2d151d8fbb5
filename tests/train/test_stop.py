"""A run that is told to stop, or killed, loses nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav
from arkfast.train.checkpoints.tensors import damage
from arkfast.train.config import TrainConfig
from arkfast.train.parallel import Parallel
from arkfast.train.stop import StopRequest
from arkfast.train.trainer import Interrupted, Trainer

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train.py"
FLAGS = {
    "stage": "opd", "per_device_train_batch_size": 1, "max_steps": 30, "learning_rate": 1e-4, "opd_top_k": 8, "asr_opd_max_new_tokens": 8,
    "gates": "off", "dataloader_num_workers": 0, "seed": 3, "model_dtype": "float32", "num_threads": 1, "device": "cpu",
    "calibration_batches": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two checkpoints of one vocabulary, five clips, and an uninterrupted run of two micro-batches a step."""
    root = tmp_path_factory.mktemp("world")
    tiny_checkpoint(root / "student", seed=1)
    tiny_checkpoint(root / "teacher", seed=2, hidden_size=64, num_attention_heads=4)
    rows = []
    for i in range(5):
        write_wav(root / f"{i}.wav", synthetic_speech(0.4 + 0.13 * i, seed=i))
        rows.append(json.dumps({"audio": f"{i}.wav", "text": "one", "id": f"clip{i}"}) + "\n")
    (root / "train.jsonl").write_text("".join(rows))
    Trainer(config(root, root / "whole")).run()
    return root


def flags(world, out, **overrides):
    models = {"student_model": world / "student", "teacher_model": world / "teacher", "train_data": world / "train.jsonl"}
    return {**FLAGS, **models, "output_dir": out, "micro_batches_per_step": 2, **overrides}


def config(world, out, **overrides):
    return TrainConfig(**flags(world, out, **overrides))


def losses(out):
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows]


def same(out, world, rel):
    ours, whole = losses(out), losses(world / "whole")
    assert [row[0] for row in ours] == [row[0] for row in whole]
    for a, b in zip(ours, whole, strict=True):
        assert a[1] == pytest.approx(b[1], rel=rel, abs=0)
        assert a[2] == pytest.approx(b[2], rel=10 * rel, abs=0)


def test_sigterm_saves_the_step_in_hand_and_a_resume_repeats_the_rest(world, tmp_path):
    """In this process, at three moments: in a step, while a checkpoint is being written, and again after the resume."""
    out, options = tmp_path / "run", {"save_freq": 4}
    trainer = Trainer(config(world, out, **options))
    loss, calls = trainer._loss, []

    def signalled(batch):
        calls.append(1)
        if len(calls) == 5:  # the third step's first micro-batch; its numbers are read when the fourth is on its way
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(batch)

    trainer._loss = signalled
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"^Stopped by SIGTERM; step 4 of 30 saved\. Continue with --resume_from_checkpoint auto\.$"):
        trainer.run()
    assert signal.getsignal(signal.SIGTERM) == before, "the process's own handler is back"

    trainer = Trainer(config(world, out, resume_from_checkpoint="auto", **options))
    assert trainer._state.step == 4
    export = trainer._export

    def signalled_export(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        export(*args)

    trainer._export = signalled_export
    with pytest.raises(Interrupted, match="step 10 of 30"):
        trainer.run()
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["global_step_10", "global_step_4", "global_step_8"]
    assert all(damage(path) is None for path in (out / "checkpoints").iterdir())
    Trainer(config(world, out, resume_from_checkpoint="auto", **options)).run()
    same(out, world, rel=0)


def test_the_last_step_ends_the_run_as_ever(world, tmp_path):
    trainer = Trainer(config(world, tmp_path / "run", max_steps=2))
    after = trainer._step

    def signalled(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        after(*args)

    trainer._state = trainer._state.__class__(**{**vars(trainer._state), "step": 1})
    trainer._step = signalled
    assert trainer.run().step == 2
    assert (tmp_path / "run" / "last" / "config.json").is_file()


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP", "SIGUSR1"])
def test_every_signal_that_warns_of_an_end_saves(world, tmp_path, name):
    number, trainer = getattr(signal, name), Trainer(config(world, tmp_path / "run"))
    before, loss = signal.getsignal(number), trainer._loss

    def signalled(batch):
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # a launcher and its process group may both pass it on
        return loss(batch)

    trainer._loss = signalled
    with pytest.raises(Interrupted, match=f"^Stopped by {name}; step 2 of 30 saved") as raised:
        trainer.run()
    assert raised.value.exit_code == 128 + number
    assert signal.getsignal(number) == before
    assert damage(tmp_path / "run" / "checkpoints" / "global_step_2", full=True) is None


def test_what_the_process_was_started_to_ignore_stays_ignored_and_a_second_ctrl_c_ends_it(monkeypatch):
    monkeypatch.setattr("arkfast.train.stop._ONE_PRESS", 0.0)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopRequest(Parallel("cpu", environment={})) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.heard == 0
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.heard == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_while_wer_is_measured_saves_first_and_takes_no_further_step(world, tmp_path):
    dev = {"eval_data": world / "train.jsonl", "per_device_eval_batch_size": 1, "max_steps": 4, "eval_freq": 3}
    out, decoded = tmp_path / "run", []
    trainer = Trainer(config(world, out, **dev))
    batches = trainer._dev.batches

    def signalled():
        for batch in batches():
            decoded.append(batch)
            if len(decoded) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    trainer._dev.batches = signalled
    with pytest.raises(Interrupted, match="step 3 of 4 saved"):
        trainer.run()
    assert len(decoded) == 2, "of five"
    assert [row["step"] for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())] == [1, 2, 3]
    Trainer(config(world, out, resume_from_checkpoint="auto", **dev)).run()
    rows = list(map(json.loads, (out / "metrics.jsonl").read_text().splitlines()))
    assert [(row["step"], "eval_wer" in row) for row in rows] == [(1, False), (2, False), (3, False), (3, True), (4, False), (4, True)]


def torchrun(world, out, *, ranks=2, restarts=0, **overrides):
    words = [word for name, value in flags(world, out, **overrides).items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", ranks, "--max-restarts", restarts,
               SCRIPT, *words]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, env=environment)


def wait_for_step(out, step, process, seconds=240):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "metrics.jsonl").exists() and len((out / "metrics.jsonl").read_text().splitlines()) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was never reached: {out.with_suffix('.log').read_text(errors='replace')[-3000:]}")


def ranks_of(process):
    """Process ids of torchrun's workers, rank by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return sorted(int(pid) for pid in children if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the ranks through /proc")
def test_a_killed_rank_is_restarted_by_torchrun_and_the_losses_are_the_same(world, tmp_path):
    out = tmp_path / "run"
    process = torchrun(world, out, restarts=2, save_freq=3)
    wait_for_step(out, 8, process)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    assert process.wait(timeout=300) == 0, out.with_suffix(".log").read_text(errors="replace")[-3000:]
    same(out, world, rel=1e-6)


@pytest.mark.slow
def test_sigterm_at_ten_random_moments_leaves_a_checkpoint_each_time(world, tmp_path):
    """Torchrun passes the signal on; saving every second step makes sure that some of the moments fall into a save."""
    out, drawn = tmp_path / "run", random.Random(0)
    for time_round in range(10):
        before = len(losses(out)) if (out / "metrics.jsonl").exists() else 0
        process = torchrun(world, out, resume_from_checkpoint="auto", save_freq=2, max_steps=1000)
        wait_for_step(out, before + 1, process)
        time.sleep(drawn.uniform(0, 1.5))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=240) != 0
        steps = {int(path.name.rpartition("_")[2]): path for path in (out / "checkpoints").glob("global_step_*")}
        newest = steps[max(steps)]
        assert damage(newest) is None
        assert max(steps) == losses(out)[-1][0], f"round {time_round}: the last step that was taken is saved"
    whole = tmp_path / "whole"
    trainer = Trainer(config(world, whole, max_steps=losses(out)[-1][0]))
    trainer.run()
    for a, b in zip(losses(out), losses(whole), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.slow
def test_one_process_told_to_stop_exits_as_if_ended_by_the_signal(world, tmp_path):
    out = tmp_path / "run"
    words = [word for name, value in flags(world, out, max_steps=1000).items() for word in (f"--{name}", str(value))]
    with out.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen([sys.executable, SCRIPT, *map(str, words)], stdout=log, stderr=subprocess.STDOUT)
    wait_for_step(out, 2, process)
    threading.Timer(0.1, process.terminate).start()
    assert process.wait(timeout=240) == 143
    assert "saved. Continue with --resume_from_checkpoint auto." in out.with_suffix(".log").read_text()


@pytest.mark.slow
def test_a_bad_manifest_stops_every_rank_before_a_model_loads_with_one_message(world, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(
        (world / "train.jsonl").read_text().replace('"audio": "', f'"audio": "{world}/') + '{"audio": "absent.wav", "text": "x"}\n'
    )
    process = torchrun(world, tmp_path / "run", train_data=bad)
    assert process.wait(timeout=120) != 0
    said = (tmp_path / "run.log").read_text()
    named = [line for line in said.splitlines() if "bad.jsonl:6: " in line]
    assert [line.split("error: ")[0].strip() for line in named] == ["arkfast train:", "traceback : arkfast train:"], (
        "one rank says it, and torchrun's report ends in it"
    )
    assert "Root Cause" in said.partition(named[0])[2].partition(named[1])[0]
    assert "Loading weights" not in said
    assert not (tmp_path / "run").exists()
