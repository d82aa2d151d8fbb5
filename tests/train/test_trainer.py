"""Runs from end to end on tiny models: every stage, accumulation, kill and resume, what is written, and what is refused."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import arkfast.models
from arkfast.engine import Engine
from arkfast.records import InputError
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav
from arkfast.train.config import TrainConfig
from arkfast.train.trainer import Trainer, TrainingStopped

TEXTS = ("one two", "three", "four five six", "seven eight", "nine", "zero one")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two checkpoints of one vocabulary and a manifest of six clips."""
    root = tmp_path_factory.mktemp("world")
    tiny_checkpoint(root / "student", seed=1)
    tiny_checkpoint(root / "teacher", seed=2, hidden_size=64, num_attention_heads=4)
    rows = []
    for i, text in enumerate(TEXTS):
        write_wav(root / f"{i}.wav", synthetic_speech(0.5 + 0.13 * i, seed=i))
        rows.append({"audio": f"{i}.wav", "text": text, "task": "asr", "begin_time": -1, "end_time": -1, "id": f"clip{i}"})
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def config(world, out, **overrides):
    values = {
        "stage": "opd", "student_model": world / "student", "teacher_model": world / "teacher", "train_data": world / "train.jsonl",
        "output_dir": out, "per_device_train_batch_size": 2, "max_steps": 4, "learning_rate": 1e-3, "opd_top_k": 8,
        "asr_opd_max_new_tokens": 8, "gates": "off", "dataloader_num_workers": 0, "seed": 3, "model_dtype": "float32", "num_threads": 1,
    }  # fmt: skip
    return TrainConfig(**{**values, **overrides})


def log(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out):
    return [(row["step"], row["loss"], row["grad_norm"]) for row in log(out) if "loss" in row]


def test_runs_of_seeds_that_follow_each_other_share_no_draws(world, tmp_path, monkeypatch):
    drawn = []
    rollout = Engine.rollout

    def watched(self, batch, **options):
        drawn[-1].append(options["seed"])
        return rollout(self, batch, **options)

    monkeypatch.setattr(Engine, "rollout", watched)
    for seed in (3, 4, 5):
        drawn.append([])
        options = {"rollout_temperature": 1.0, "calibration_batches": 0, "train_max_samples": 2, "max_steps": 3, "seed": seed}
        Trainer(config(world, tmp_path / f"{seed}", **options)).run()
    assert [len(seeds) for seeds in drawn] == [3, 3, 3]
    assert len({seed for seeds in drawn for seed in seeds}) == 9


@pytest.mark.parametrize("stage", ["opd", "td", "sft"])
def test_each_stage_runs_lowers_its_loss_and_leaves_a_model(world, tmp_path, stage, capsys):
    out = tmp_path / "run"
    options = {"teacher_model": None, "ctc_weight": 0.5} if stage == "sft" else {}
    Trainer(config(world, out, stage=stage, max_steps=30, eval_data=world / "train.jsonl", eval_freq=15, save_freq=15, **options)).run()
    steps = [row["loss"] for row in log(out) if "loss" in row]
    assert len(steps) == 30
    assert sum(steps[-6:]) < 0.8 * sum(steps[:6])
    evaluations = [row for row in log(out) if "eval_wer" in row]
    assert [row["step"] for row in evaluations] == [15, 30]
    assert [[sample["id"] for sample in row["samples"]] for row in evaluations] == [[f"clip{i}" for i in range(6)]] * 2
    assert {sample["text"] for sample in evaluations[0]["samples"]} == set(TEXTS)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")] == log(out)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["global_step_15", "global_step_30"]
    start = load_file(world / "student" / "model.safetensors")
    for folder in (out / "best", out / "last", out / "checkpoints" / "global_step_30"):
        weights = load_file(folder / "model.safetensors")
        assert weights.keys() == start.keys(), "no CTC head, no optimizer state in a model's file"
        assert arkfast.models.load_model(folder).config.model_type == "arkasr"
        assert arkfast.models.ArkasrProcessor.from_pretrained(folder).tokenizer.eos_token == "<|im_end|>"
    changed = [name for name in start if not torch.equal(start[name], load_file(out / "last" / "model.safetensors")[name])]
    assert len(changed) > 0.9 * len(start)
    resume = load_file(out / "checkpoints" / "global_step_30" / "optimizer.safetensors")
    assert any("ctc_head" in name for name in resume) == (stage == "sft")


def test_the_log_file_holds_the_ops_that_a_run_called_and_the_screen_does_not(world, tmp_path, capsys):
    Trainer(config(world, tmp_path / "run", max_steps=2, log_file=tmp_path / "log.txt")).run()
    assert "kernels: " not in capsys.readouterr().err
    (line,) = (line for line in (tmp_path / "log.txt").read_text().splitlines() if "kernels: " in line)
    calls = {op: (int(count), backend) for op, count, _, backend in (part.split() for part in line.split("kernels: ")[1].split(", "))}
    backend = "torch" if not torch.cuda.is_available() else "triton"
    for op in ("opd_union_kl", "linear_topk_lse"):
        assert calls[op] == (2, backend), "one loss and one teacher pass a step"
    assert calls["audio_embed_merge"][0] >= 4, "the student's rollout and loss, and the teacher, merge audio at every step"
    assert calls["topk_lse"][0] >= 2, "at least one decode step a rollout"


def test_four_micro_batches_equal_one_batch(world, tmp_path):
    options = {"shuffle_train": False, "max_steps": 3, "train_max_samples": 4}
    Trainer(config(world, tmp_path / "one", per_device_train_batch_size=4, **options)).run()
    Trainer(config(world, tmp_path / "four", per_device_train_batch_size=1, gradient_accumulation_steps=4, **options)).run()
    for a, b in zip(losses(tmp_path / "one"), losses(tmp_path / "four"), strict=True):
        assert b == pytest.approx(a, rel=1e-4)
    one, four = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("one", "four"))
    for name in one:
        # Adam divides by the gradient's own size, so where a gradient is near 0 rounding decides its sign: at most one full update a step.
        assert (one[name] - four[name]).abs().max() <= 3 * 2 * 1e-3
        assert (one[name] - four[name]).abs().mean() <= 2e-5


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rollout_temperature": 1.0, "rollouts_per_prompt": 2},
        {"model_dtype": "bfloat16"},
        {"stage": "sft", "teacher_model": None, "ctc_weight": 0.5},
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(world, tmp_path, options):
    Trainer(config(world, tmp_path / "whole", max_steps=6, lr_scheduler_type="cosine", warmup_steps=2, **options)).run()
    part = config(world, tmp_path / "part", max_steps=6, lr_scheduler_type="cosine", warmup_steps=2, save_freq=2, **options)
    trainer = Trainer(part)
    step, calls = trainer._step, []

    def stop_after_five(*args):
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(step(*args))

    trainer._step = stop_after_five
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert [row[0] for row in losses(tmp_path / "part")] == [1, 2, 3, 4], "the fifth had not been read yet"
    resumed = Trainer(TrainConfig(**{**vars(part), "resume_from_checkpoint": "latest"}))
    assert resumed._state.step == 4
    resumed.run()
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")
    whole, part_weights = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("whole", "part"))
    assert all(torch.equal(whole[name], part_weights[name]) for name in whole)


def test_a_killed_process_resumes(world, tmp_path):
    out = tmp_path / "run"
    words = ["--stage", "opd", "--student_model", world / "student", "--teacher_model", world / "teacher",
             "--train_data", world / "train.jsonl", "--output_dir", out, "--per_device_train_batch_size", 2, "--max_steps", 400,
             "--learning_rate", 1e-3, "--opd_top_k", 8, "--asr_opd_max_new_tokens", 8, "--gates", "off", "--dataloader_num_workers", 1,
             "--save_freq", 3, "--num_threads", 1]  # fmt: skip
    command = [sys.executable, "-m", "arkfast.cli", "train", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(out.glob("checkpoints/global_step_*")):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed = losses(out)
    assert 3 <= len(killed) < 400
    options = {"learning_rate": 1e-3, "dataloader_num_workers": 1, "seed": 1}
    steps = killed[-1][0] + 2
    Trainer(config(world, out, max_steps=steps, resume_from_checkpoint="auto", **options)).run()
    Trainer(config(world, tmp_path / "whole", max_steps=steps, **options)).run()
    assert losses(out) == losses(tmp_path / "whole")
    assert losses(out)[: len(killed)] == killed


def test_old_checkpoints_go_after_new_ones_are_complete(world, tmp_path, monkeypatch):
    out = tmp_path / "run"
    Trainer(config(world, out, max_steps=6, save_freq=1, max_ckpt_to_keep=2)).run()
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["global_step_5", "global_step_6"]
    before = load_file(out / "last" / "model.safetensors")
    resumed = Trainer(config(world, out, max_steps=8, save_freq=1, max_ckpt_to_keep=2, resume_from_checkpoint="auto"))

    def fail(folder, weights):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(resumed, "_export", fail)
    with pytest.raises(OSError, match="disk full"):
        resumed.run()
    after = load_file(out / "last" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sorted(path.name for path in (out / "checkpoints").glob("global*")) == ["global_step_5", "global_step_6"]


def test_an_output_folder_that_holds_something_else_is_refused(world, tmp_path):
    out = tmp_path / "run"
    Trainer(config(world, out, max_steps=1)).run()
    with pytest.raises(InputError, match="holds this run already; give --resume_from_checkpoint auto"):
        Trainer(config(world, out, max_steps=1))
    with pytest.raises(InputError, match=r"holds another run \(seed 3 there, 4 here\)"):
        Trainer(config(world, out, seed=4, resume_from_checkpoint="auto"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty and not a training run"):
        Trainer(config(world, tmp_path / "full"))
    assert (tmp_path / "full" / "thesis.txt").read_text() == "precious"
    with pytest.raises(InputError, match="holds no checkpoint"):
        Trainer(config(world, tmp_path / "new", resume_from_checkpoint="latest"))
    with pytest.raises(InputError, match="not a checkpoint folder"):
        Trainer(config(world, tmp_path / "new2", resume_from_checkpoint=str(tmp_path / "full")))


def test_k_above_the_allowed_ids_is_clamped_and_said_once(world, tmp_path, capsys):
    Trainer(config(world, tmp_path / "run", opd_top_k=10_000, max_steps=3)).run()
    said = [line for line in capsys.readouterr().err.splitlines() if "--opd_top_k 10000" in line]
    assert len(said) == 1
    assert "the vocabulary allows" in said[0]
    assert all(torch.isfinite(torch.tensor(row[1])) for row in losses(tmp_path / "run"))


def bad_manifest(world, tmp_path, row):
    path = tmp_path / "bad.jsonl"
    good = {"audio": str(world / "0.wav"), "text": "one", "id": "good"}
    path.write_text(json.dumps(good) + "\n" + (row if isinstance(row, str) else json.dumps(row)) + "\n")
    return path


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"audio": ', "not valid JSON"),
        ({"audio": "absent.wav", "text": "x"}, "absent.wav"),
        ({"audio": "0.wav", "text": "x", "begin_time": 2, "end_time": 1}, "begin_time 2 is past end_time 1"),
        ({"audio": "0.wav", "text": "x", "begin_time": 0, "end_time": 9}, "0.wav"),
        ({"audio": "0.wav", "text": "x", "task": "tts"}, "task 'tts'"),
        ({"audio": "0.wav"}, "no text"),
    ],
)
def test_bad_rows_stop_training_with_file_and_line(world, tmp_path, row, message):
    if isinstance(row, dict) and row["audio"] == "0.wav":
        row = {**row, "audio": str(world / "0.wav")}
    path = bad_manifest(world, tmp_path, row)
    with pytest.raises(InputError) as raised:
        Trainer(config(world, tmp_path / "run", stage="sft", teacher_model=None, train_data=path)).run()
    assert f"{path}:2: " in str(raised.value)
    assert message in str(raised.value)


def test_models_that_do_not_fit_are_refused(world, tmp_path):
    with pytest.raises(InputError, match=r"--student_model .*no config.json"):
        Trainer(config(world, tmp_path / "a", student_model=tmp_path))
    other = tiny_checkpoint(tmp_path / "other", seed=2, vocab_size=300)
    with pytest.raises(InputError, match="its vocabulary differs"):
        Trainer(config(world, tmp_path / "b", teacher_model=other))
    assert not (tmp_path / "b").exists(), "nothing is written before the inputs are known to be right"


def test_a_world_without_its_addresses_is_refused_with_a_reason(world, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set; start processes with torchrun"):
        Trainer(config(world, tmp_path / "run"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"teacher_model": None}, "--teacher_model: stage opd needs a teacher"),
        ({"stage": "td", "ctc_weight": 0.5}, "--ctc_weight"),
        ({"opd_top_k": 0}, "--opd_top_k: must be at least 1"),
        ({"learning_rate": 0.0}, "--learning_rate: must be above 0"),
        ({"learning_rate": float("nan")}, "--learning_rate: must be a finite number"),
        ({"rollouts_per_prompt": 2}, "--rollouts_per_prompt: greedy rollouts are all alike"),
        ({"rollout_top_p": 0.0}, "--rollout_top_p"),
        ({"eval_freq": 2}, "--eval_freq: there is nothing to measure on"),
    ],
)
def test_settings_that_make_no_sense_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        config(Path("w"), Path("o"), **overrides)


def test_a_step_is_read_after_the_next_one_was_handed_over(world, tmp_path, monkeypatch):
    trainer = Trainer(config(world, tmp_path / "run", max_steps=4, save_freq=3, calibration_batches=0))
    order, step, read = [], trainer.optimizer.step, trainer._recorder.read
    monkeypatch.setattr(trainer.optimizer, "step", lambda *args: order.append("step") or step(*args))
    monkeypatch.setattr(trainer._recorder, "read", lambda pending: order.append("read") or read(pending))
    trainer.run()
    assert order == ["step", "step", "read", "step", "read", "read", "step", "read"], "a save first reads what it is about to keep"
    assert [row["step"] for row in log(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_run_that_only_sees_bad_numbers_stops(world, tmp_path):
    trainer = Trainer(config(world, tmp_path / "run", max_steps=50, max_skipped_steps=3, calibration_batches=0))
    start = {name: p.clone() for name, p in trainer.model.named_parameters()}
    with torch.no_grad():
        trainer.model.model.norm.weight[0] = float("nan")
    with pytest.raises(TrainingStopped, match="not finite for 3 steps"):
        trainer.run()
    rows = log(tmp_path / "run")
    assert [row["skipped"] for row in rows] == [True] * 3
    assert all(torch.equal(p, start[name]) for name, p in trainer.model.named_parameters() if name != "model.norm.weight")


def test_a_run_without_hope_stops_before_its_first_step(world, tmp_path, monkeypatch):
    trainer = Trainer(config(world, tmp_path / "run"))
    with torch.no_grad():
        trainer.model.model.norm.weight[0] = float("nan")
    with pytest.raises(TrainingStopped, match="preflight: the loss is nan before any step"):
        trainer.run()
    assert log(tmp_path / "run") == []

    trainer = Trainer(config(world, tmp_path / "blind"))
    score = trainer._teacher.score

    def nothing(batch, rollout, begun):
        scores = score(batch, rollout, begun)
        return dataclasses.replace(scores, valid=torch.zeros_like(scores.valid))

    monkeypatch.setattr(trainer._teacher, "score", nothing)
    with pytest.raises(TrainingStopped, match="preflight: no position counts"):
        trainer.run()


def test_the_preflight_alone_changes_nothing_and_a_run_with_it_is_the_same_run(world, tmp_path, capsys):
    state = Trainer(config(world, tmp_path / "look", calibrate_only=True, calibration_batches=5)).run()
    assert state.step == 0
    assert not (tmp_path / "look").exists(), "it writes nothing"
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("[calibration summary] "))
    found = json.loads(line.removeprefix("[calibration summary] "))
    assert set(found) == {"positions", "audio_seconds", "initial/asr_loss_mean", "initial/opd_loss_mean",
                          "initial/generated_nonempty_ratio", "initial/generated_tokens_mean"}  # fmt: skip
    assert found["positions"] == 5 * 2 * 8
    for name, batches in (("with", 3), ("without", 0)):
        Trainer(config(world, tmp_path / name, calibration_batches=batches)).run()
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert found["initial/opd_loss_mean"] == pytest.approx(losses(tmp_path / "with")[0][1], rel=0.3)


def test_how_often_the_end_token_is_a_candidate(world, tmp_path):
    Trainer(config(world, tmp_path / "run", max_steps=6)).run()
    for row in log(tmp_path / "run"):
        assert row["opd_terminal_rows"] == round(2 * row["generated_stopped"])
        assert row["opd_terminal_rows"] + row["opd_nonterminal_rows"] == row["positions"]
        assert row["opd_terminal_eos_candidate_rows"] == row["opd_terminal_rows"], "what was produced is among the student's best"
        assert 0 <= row["opd_nonterminal_eos_candidate_rows"] <= row["opd_nonterminal_rows"]
        assert row["local_valid_count_min"] == row["local_valid_count_max"] == row["positions"]
    assert sum(row["opd_terminal_rows"] for row in log(tmp_path / "run")) > 0


def test_torchrun_with_one_process(world, tmp_path):
    script = Path(__file__).resolve().parents[2] / "scripts" / "train.py"
    words = ["--stage", "sft", "--student_model", world / "student", "--train_data", world / "train.jsonl",
             "--output_dir", tmp_path / "run", "--max_steps", 2, "--learning_rate", 1e-3, "--dataloader_num_workers", 0]  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", script, *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "run")) == 2


def test_a_folder_survives_a_kill_between_the_two_renames(tmp_path):
    from arkfast.files import replace_folder

    target = tmp_path / "best"
    replace_folder(target, lambda folder: (folder / "weights").write_text("old"))
    target.rename(tmp_path / ".best.old")  # where a killed call would have left it

    def fail(folder):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_folder(target, fail)
    assert (target / "weights").read_text() == "old"
    replace_folder(target, lambda folder: (folder / "weights").write_text("new"))
    assert (target / "weights").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
