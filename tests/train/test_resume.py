"""Which run goes on, and from where: other data and other parts are refused, and what is missing is made up for."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from arkfast.records import InputError
from arkfast.train.checkpoints.run_folder import RunFolder, TrainerState, load_state
from arkfast.train.checkpoints.saver import Saver
from arkfast.train.checkpoints.tensors import damage
from arkfast.train.config import TrainConfig
from arkfast.train.parallel import Parallel
from arkfast.train.trainer import Interrupted, Trainer, TrainingStopped


def config(world, out, **overrides):
    values = {
        "stage": "sft", "student_model": world / "student", "train_data": world / "train.jsonl", "output_dir": out, "max_steps": 8,
        "learning_rate": 1e-3, "asr_opd_max_new_tokens": 4,
        "gates": "off", "dataloader_num_workers": 0, "seed": 3, "model_dtype": "float32",
        "num_threads": 1, "device": "cpu", "calibration_batches": 0,
    }  # fmt: skip
    return TrainConfig(**{**values, **overrides})


def log(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def checkpoints(out):
    return sorted(path.name for path in (out / "checkpoints").iterdir())


# Lengths that are known beforehand.


@pytest.mark.parametrize("flag", ["train_data", "eval_data"])
def test_a_clip_over_the_limit_is_named_before_a_model_loads(world, tmp_path, flag, monkeypatch):
    manifest = world / f"long_{flag}.jsonl"
    manifest.write_text((world / "dev.jsonl").read_text() + json.dumps({"audio": "long.wav", "text": "x", "id": "long"}) + "\n")
    options = {flag: manifest, "max_audio_seconds": 1.2}
    with monkeypatch.context() as patch:
        patch.setattr("arkfast.train.trainer.load_models", None)
        with pytest.raises(InputError, match=rf"long_{flag}.jsonl:2: .*1.5 s of audio, over the limit of 1.2 s"):
            Trainer(config(world, tmp_path / "run", **options))
    if flag == "train_data":
        trainer = Trainer(config(world, tmp_path / "run", on_bad_audio="skip:0.5", max_steps=0, **options))
        assert trainer.run().bad_rows == 1, "it may be passed over"


def test_a_length_that_the_manifest_overstates_is_no_reason_to_refuse(world, tmp_path):
    manifest = world / "overstated.jsonl"
    manifest.write_text(json.dumps({"audio": "0.wav", "text": "x", "id": "a", "duration": 99}) + "\n")
    assert Trainer(config(world, tmp_path / "run", train_data=manifest, eval_data=manifest, max_steps=1)).run().step == 1


# What makes a run this run.


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({}, {"freeze": ("audio_encoder",)}, r"freeze \[\] there, \['audio_encoder'\] here\); give no --freeze to go on"),
        ({"freeze": ("audio_encoder", "adapter")}, {}, "give --freeze audio_encoder,adapter to go on with it"),
        ({"lora_rank": 4}, {"lora_rank": 8, "lora_alpha": 8.0}, "give --lora_rank 4, --lora_alpha 32.0 to go on with it"),
    ],
)
def test_what_is_trained_cannot_change_in_the_middle(world, tmp_path, before, now, said):
    out = tmp_path / "run"
    RunFolder(config(world, out, **before)).claim()
    with pytest.raises(InputError, match=said):
        RunFolder(config(world, out, resume_from_checkpoint="auto", **now))
    claim = json.loads((out / "run.json").read_text())
    for key in ("freeze", "lora_rank", "lora_alpha"):
        del claim["identity"][key]
    (out / "run.json").write_text(json.dumps(claim))
    with pytest.raises(InputError, match=said):
        RunFolder(config(world, out, resume_from_checkpoint="auto", **now))
    for key in ("freeze", "lora_rank", "lora_alpha"):
        del claim["config"][key]
    (out / "run.json").write_text(json.dumps(claim))
    RunFolder(config(world, out, resume_from_checkpoint="auto", **now))


def test_a_checkpoint_of_other_data_or_another_run_is_refused(world, tmp_path, halted):
    manifest, out = world / "changing.jsonl", tmp_path / "run"
    rows = (world / "train.jsonl").read_text().splitlines(keepends=True)
    manifest.write_text("".join(rows))
    options = {"train_data": manifest, "max_steps": 0, "total_epochs": 2, "save_freq": 2}
    halted(Trainer(config(world, out, **options)), 6)
    manifest.write_text("".join(rows[:2]))
    saved = out / "checkpoints" / "global_step_6"
    said = r"global_step_6 belongs to another run \(other rows to train on: 5 there, 2 here\); give .* or --allow_changed rows"
    for wanted in ("auto", "latest", str(saved)):
        with pytest.raises(InputError, match=said):
            Trainer(config(world, out, resume_from_checkpoint=wanted, **options))
    manifest.write_text("".join(rows))
    with pytest.raises(InputError, match=r"another run \(seed 3 there, 4 here\)"):
        Trainer(config(world, tmp_path / "other", resume_from_checkpoint=str(saved), seed=4, **options))
    moved = world / "moved.jsonl"
    moved.write_text("".join(rows))
    elsewhere = Trainer(config(world, tmp_path / "elsewhere", resume_from_checkpoint=str(saved), **{**options, "train_data": moved}))
    assert elsewhere._state.step == 6, "the same rows at another place are the same data"


def test_a_checkpoint_that_does_not_say_its_data_goes_on_with_a_note(world, tmp_path, capsys, halted):
    out, options = tmp_path / "run", {"max_steps": 0, "total_epochs": 2, "save_freq": 2}
    halted(Trainer(config(world, out, **options)), 4)
    saved = out / "checkpoints" / "global_step_4" / "trainer_state.json"
    old = {key: json.loads(saved.read_text())[key] for key in ("step", "cursor", "best_wer", "best_step", "skipped")}
    saved.write_text(json.dumps(old))
    assert Trainer(config(world, out, resume_from_checkpoint="auto", **options)).run().step == 10
    assert "global_step_4 does not say which data it was trained on" in capsys.readouterr().err
    halted(Trainer(config(world, tmp_path / "far", **options)), 8)
    saved = tmp_path / "far" / "checkpoints" / "global_step_8" / "trainer_state.json"
    saved.write_text(json.dumps({**old, "step": 3, "cursor": 8}))
    with pytest.raises(InputError, match="stands after 8 rows, and all epochs of --train_data have 5"):
        Trainer(config(world, tmp_path / "far", resume_from_checkpoint="auto", **{**options, "total_epochs": 1}))


# Starting anew.


def test_a_new_checkpoint_is_never_the_one_that_goes(world, tmp_path):
    folder = RunFolder(config(world, tmp_path, max_ckpt_to_keep=1))
    saver = Saver(folder, Parallel("cpu", environment={}), sharded=False, background=False)
    for step in (8, 4):
        saver.save(TrainerState(step=step, cursor=step, best_wer=None, best_step=None, skipped=0), lambda _: None, {"w": torch.ones(1)})
    assert "global_step_4" in checkpoints(tmp_path)


def test_processes_started_anew_go_on_from_the_newest_checkpoint_whatever_was_named(world, tmp_path, monkeypatch, halted):
    first, out, options = tmp_path / "first", tmp_path / "run", {"save_freq": 2, "max_ckpt_to_keep": 9}
    Trainer(config(world, first, **options)).run()
    named = str(first / "checkpoints" / "global_step_4")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert Trainer(config(world, out, resume_from_checkpoint=named, **options))._state.step == 4, "there is no newer one yet"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    halted(Trainer(config(world, out, resume_from_checkpoint=named, **options)), 6)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert Trainer(config(world, out, resume_from_checkpoint=named, **options))._state.step == 6
    assert Trainer(config(world, first, **options))._state.step == 8, "without the flag too"
    back = str(first / "checkpoints" / "global_step_2")
    assert Trainer(config(world, first, resume_from_checkpoint=back, **options))._state.step == 2, "nothing had gone back there before"


def test_what_a_killed_save_left_is_cleared_away_or_put_back(world, tmp_path):
    out = tmp_path / "run"
    Trainer(config(world, out, max_steps=2, save_freq=1)).run()
    folder = out / "checkpoints"
    (folder / "global_step_2").rename(folder / ".global_step_2.old")
    (folder / ".global_step_2.new").mkdir()
    (out / "last").rename(out / ".last.new")
    (out / ".mine.new").mkdir()
    assert Trainer(config(world, out, max_steps=3, resume_from_checkpoint="latest"))._state.step == 2
    assert checkpoints(out) == ["global_step_1", "global_step_2"]
    assert sorted(path.name for path in out.glob(".*")) == [".lock", ".mine.new"]


# Evaluations, and what is counted.


def evaluations(out):
    return [row["step"] for row in log(out) if "eval_wer" in row]


def test_an_evaluation_that_fails_loses_nothing_and_a_resume_makes_up_for_it(world, tmp_path, monkeypatch):
    out, options = tmp_path / "run", {"max_steps": 2, "eval_data": world / "dev.jsonl", "async_save": True}
    trainer = Trainer(config(world, out, **options))
    with monkeypatch.context() as patch:
        patch.setattr(trainer._dev, "measure", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.run()
    saved = out / "checkpoints" / "global_step_2"
    assert load_state(saved).evaluation_due
    state = Trainer(config(world, out, resume_from_checkpoint="auto", **options)).run()
    assert (out / "best").is_dir()
    assert (out / "last").is_dir()
    assert (evaluations(out), state.best_step) == ([2], 2)
    assert load_state(saved) == state, "the checkpoint learns of the evaluation that came after it"
    assert damage(saved) is None
    Trainer(config(world, out, resume_from_checkpoint="auto", **options)).run()
    assert evaluations(out) == [2]
    with (out / "metrics.jsonl").open() as file:
        assert [sample["language"] for sample in json.loads(file.readlines()[-1])["samples"]] == ["en"]


@pytest.mark.parametrize("at", [1, 2])
def test_a_run_that_is_stopped_where_an_evaluation_is_due_makes_up_for_it(world, tmp_path, at):
    out, options = tmp_path / "run", {"max_steps": 6, "eval_data": world / "dev.jsonl", "eval_freq": 2}
    trainer = Trainer(config(world, out, **options))
    loss, calls = trainer._loss, []

    def signalled(batch):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(batch)

    trainer._loss = signalled
    with pytest.raises(Interrupted, match="step 2 of 6 saved"):
        trainer.run()
    assert evaluations(out) == []
    state = Trainer(config(world, out, resume_from_checkpoint="auto", **options)).run()
    whole = Trainer(config(world, tmp_path / "whole", **options)).run()
    assert state == whole

    def timeless(folder):
        return [{k: v for k, v in row.items() if k in ("step", "loss", "eval_wer", "best", "samples")} for row in log(folder)]

    assert timeless(out) == timeless(tmp_path / "whole")


def test_bad_clips_are_counted_over_a_resume(world, tmp_path):
    manifest, options = world / "bad.jsonl", {"on_bad_audio": "skip:0.2", "save_freq": 1, "max_steps": 0}
    (world / "junk.wav").write_bytes(b"RIFF but nothing more")
    rows = [json.dumps({"audio": "junk.wav", "text": "x", "id": f"bad{i}", "duration": 0.5}) + "\n" for i in range(2)]
    manifest.write_text("".join([*(world / "train.jsonl").read_text().splitlines(keepends=True), *rows]))
    out = tmp_path / "run"
    with pytest.raises(InputError, match=r"2 clips so far are bad, over the limit of skip:0\.2"):
        Trainer(config(world, out, train_data=manifest, **options)).run()
    steps = {load_state(path).step: load_state(path).bad_rows for path in (out / "checkpoints").iterdir()}
    assert steps[max(steps)] == 1
    with pytest.raises(InputError, match="2 clips so far are bad"):
        Trainer(config(world, out, train_data=manifest, resume_from_checkpoint="auto", **options)).run()


def with_bad_clip(world, place):
    """The manifest, one of its five clips no audio."""
    (world / "junk.wav").write_bytes(b"RIFF but nothing more")
    rows = (world / "train.jsonl").read_text().splitlines(keepends=True)
    rows[place] = json.dumps({**json.loads(rows[place]), "audio": "junk.wav", "duration": 0.5}) + "\n"
    manifest = world / f"bad{place}.jsonl"
    manifest.write_text("".join(rows))
    return manifest


def test_a_bad_clip_that_the_preflight_saw_counts_with_its_own_step(world, tmp_path, halted):
    out = tmp_path / "run"
    options = {
        "train_data": with_bad_clip(world, 2), "on_bad_audio": "skip:0.2", "shuffle_train": False, "max_steps": 5, "save_freq": 1,
        "max_ckpt_to_keep": 9, "calibration_batches": 4,
    }  # fmt: skip
    halted(Trainer(config(world, out, **options)), 1)
    assert load_state(out / "checkpoints" / "global_step_1").bad_rows == 0
    assert Trainer(config(world, out, resume_from_checkpoint="auto", **options)).run().bad_rows == 1
    whole = Trainer(config(world, tmp_path / "whole", **options)).run()
    assert whole.bad_rows == 1
    for folder in (out, tmp_path / "whole"):
        assert [row["step"] for row in log(folder) if "bad_audio" in row] == [3]
        states = [load_state(folder / "checkpoints" / f"global_step_{step}").bad_rows for step in range(1, 6)]
        assert states == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    "look", [{"calibration_batches": 1}, {"calibration_batches": 0}, {"calibrate_only": True, "calibration_batches": 3}]
)
def test_too_many_bad_clips_are_named_by_the_preflight_too(world, tmp_path, look):
    options = {"train_data": with_bad_clip(world, 0), "shuffle_train": False, **look}
    with pytest.raises(InputError, match=r"1 clips so far are bad, over the limit of skip:0\.1; the last: .*bad0\.jsonl:1: "):
        Trainer(config(world, tmp_path / "run", on_bad_audio="skip:0.1", **options)).run()


def test_a_preflight_that_saw_nothing_but_bad_clips_says_so(world, tmp_path):
    options = {"train_data": with_bad_clip(world, 0), "shuffle_train": False, "on_bad_audio": "skip:0.2"}
    said = r"--on_bad_audio skip:0\.2 passed over 1 of the clips looked at, the last: .*bad0\.jsonl:1: .*--calibration_batches"
    with pytest.raises(TrainingStopped, match=said):
        Trainer(config(world, tmp_path / "run", calibration_batches=1, **options)).run()
    assert Trainer(config(world, tmp_path / "more", calibration_batches=2, **options)).run().bad_rows == 2, "once an epoch"


def test_a_resumed_run_can_be_calibrated(world, tmp_path, capsys):
    out = tmp_path / "run"
    Trainer(config(world, out, max_steps=2)).run()
    look = config(world, out, max_steps=4, calibrate_only=True, calibration_batches=2, resume_from_checkpoint="latest")
    assert Trainer(look).run().step == 2
    assert "[calibration summary]" in capsys.readouterr().out


def test_tensorboard_shows_no_step_that_was_given_up(world, tmp_path, halted):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    halted(Trainer(config(world, out, save_freq=2, tensorboard=True)), 5)
    back = str(out / "checkpoints" / "global_step_2")
    Trainer(config(world, out, max_steps=3, tensorboard=True, resume_from_checkpoint=back)).run()
    shown = EventAccumulator(str(out / "tensorboard"))
    shown.Reload()
    assert [event.step for event in shown.Scalars("loss")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"adam_beta1": 1.5}, r"--adam_beta1: must lie in \[0, 1\), got 1.5"),
        ({"adam_beta2": -0.1}, "--adam_beta2: must lie in"),
        ({"seed": -1}, "--seed: must not be negative"),
        ({"device": "gpu"}, "--device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        ({"min_lr_ratio": -1.0}, "--min_lr_ratio: must lie in"),
        ({"lora_rank": 4, "lora_alpha": 0.0}, "--lora_alpha: must be above 0"),
    ],
)
def test_values_out_of_range_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        config(Path("w"), Path("o"), **overrides)


def test_a_gpu_that_is_not_there_is_named():
    there = torch.cuda.device_count()
    with pytest.raises(InputError, match=rf"--device cuda:{there}: torch sees {there} GPUs? here; give another, cpu, or auto"):
        Parallel(f"cuda:{there}", environment={})
