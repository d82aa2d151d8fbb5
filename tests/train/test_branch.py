"""Going back: the run stands where it was told to from the first moment on, and nothing of another branch stays in its way."""

import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from arkfast.train.checkpoints.run_folder import RunFolder, load_state, read_best
from arkfast.train.checkpoints.tensors import damage
from arkfast.train.config import TrainConfig
from arkfast.train.evaluation import DevSet
from arkfast.train.trainer import Trainer


def config(world, out, **overrides):
    values = {
        "stage": "sft", "student_model": world / "student", "train_data": world / "train.jsonl", "output_dir": out, "max_steps": 6,
        "save_freq": 2, "max_ckpt_to_keep": 9, "learning_rate": 1e-3, "asr_opd_max_new_tokens": 4,
        "gates": "off", "dataloader_num_workers": 0, "seed": 3,
        "model_dtype": "float32", "num_threads": 1, "device": "cpu", "calibration_batches": 0,
    }  # fmt: skip
    return TrainConfig(**{**values, **overrides})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def model(folder):
    return load_file(folder / "model.safetensors")


def same(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


def best_of(out):
    """Which evaluation ``best`` is of; that it says on which rows is asked, and not on which."""
    found = read_best(out / "best")
    assert len(found.pop("dev")) == 16
    return found


def measured(monkeypatch, *wers):
    """Evaluations find these, one after the other."""
    left = list(wers)
    monkeypatch.setattr(DevSet, "measure", lambda *_, **__: {"eval_wer": left.pop(0), "eval_utterances": 1})


def test_a_run_that_goes_back_goes_on_from_its_own_branch(world, tmp_path, capsys, halted):
    out, options = tmp_path / "run", {"max_ckpt_to_keep": 2, "max_steps": 8}
    Trainer(config(world, out, **options)).run()
    assert names(out / "checkpoints") == ["global_step_6", "global_step_8"]
    back = str(out / "checkpoints" / "global_step_6")
    options["save_freq"] = 1
    halted(Trainer(config(world, out, resume_from_checkpoint=back, learning_rate=1e-5, **options)), 7)
    assert "global_step_8 moved to" in capsys.readouterr().err
    assert names(out / "checkpoints") == ["global_step_6", "global_step_7"]
    left = out / "abandoned" / "1" / "global_step_8"
    assert damage(left) is None
    auto = Trainer(config(world, out, resume_from_checkpoint="auto", **options))
    assert auto._state.step == 7
    there = Trainer(config(world, out, resume_from_checkpoint=str(left), **{**options, "max_steps": 9}))
    assert there._state.step == 8, "and back to the first branch"
    there.run()
    assert names(out / "checkpoints") == ["global_step_8", "global_step_9"]
    assert names(out / "abandoned" / "2") == ["global_step_6", "global_step_7"]
    assert damage(left) is None, "it stands there still"


@pytest.mark.parametrize("links", [True, False])
def test_a_checkpoint_from_elsewhere_stands_in_the_run_before_the_first_save(world, tmp_path, monkeypatch, links, halted):
    first, out = tmp_path / "first", tmp_path / "run"
    Trainer(config(world, first, max_steps=4)).run()
    Trainer(config(world, out, learning_rate=1e-4)).run()
    named, target = first / "checkpoints" / "global_step_4", out / "checkpoints" / "global_step_4"
    was, files = model(target), sorted(path.relative_to(named) for path in named.rglob("*"))
    if not links:

        def refuse(*_):
            raise OSError("other file system")

        monkeypatch.setattr(os, "link", refuse)
    halted(Trainer(config(world, out, resume_from_checkpoint=str(named), save_freq=0)), 5)
    assert names(out / "checkpoints") == ["global_step_4"]
    assert damage(target) is None
    assert sorted(path.relative_to(target) for path in target.rglob("*")) == files
    assert (target / "model.safetensors").samefile(named / "model.safetensors") == links
    assert names(out / "abandoned" / "1") == ["global_step_2", "global_step_4", "global_step_6"]
    assert same(model(out / "abandoned" / "1" / "global_step_4"), was)
    auto = Trainer(config(world, out, resume_from_checkpoint="auto"))
    assert auto._state == load_state(named)
    auto.run()
    again = Trainer(config(world, tmp_path / "again", resume_from_checkpoint=str(named)))
    again.run()
    assert same(model(out / "last"), model(tmp_path / "again" / "last"))


def test_a_copy_that_fails_leaves_every_checkpoint_where_it_was(world, tmp_path, monkeypatch):
    first, out = tmp_path / "first", tmp_path / "run"
    Trainer(config(world, first, max_steps=2)).run()
    Trainer(config(world, out)).run()

    def full(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(OSError, match="disk full"):
            Trainer(config(world, out, resume_from_checkpoint=str(first / "checkpoints" / "global_step_2")))
    RunFolder(config(world, out, resume_from_checkpoint="auto"))
    assert names(out / "checkpoints") == ["global_step_2", "global_step_4", "global_step_6"]
    assert not (out / "abandoned").exists()


def test_best_follows_the_branch(world, tmp_path, monkeypatch):
    out, options = tmp_path / "run", {"eval_freq": 2, "eval_data": world / "dev.jsonl"}
    measured(monkeypatch, 50.0, 10.0, 60.0)
    Trainer(config(world, out, **options)).run()
    second, fourth = (model(out / "checkpoints" / f"global_step_{step}") for step in (2, 4))
    assert same(model(out / "best"), fourth)
    measured(monkeypatch, 70.0, 80.0)
    back = str(out / "checkpoints" / "global_step_2")
    state = Trainer(config(world, out, resume_from_checkpoint=back, learning_rate=2e-3, **options)).run()
    assert (state.best_step, best_of(out)) == (2, {"step": 2, "eval_wer": 50.0})
    assert same(model(out / "best"), second)
    assert names(out / "best") == names(out / "abandoned" / "1" / "best"), "the optimizer is no part of it"
    assert same(model(out / "abandoned" / "1" / "best"), fourth)
    state = Trainer(config(world, out, resume_from_checkpoint=str(out / "abandoned" / "1" / "global_step_6"), **options))._state
    assert state.best_step == 4
    assert same(model(out / "best"), fourth), "of the first branch's step 4, not the second's"
    assert names(out / "abandoned" / "2") == ["best", "global_step_2", "global_step_4", "global_step_6"]


def test_a_best_model_that_still_holds_stays(world, tmp_path, monkeypatch):
    out, options = tmp_path / "run", {"eval_freq": 2, "eval_data": world / "dev.jsonl"}
    measured(monkeypatch, 50.0, 60.0, 70.0)
    Trainer(config(world, out, **options)).run()
    Trainer(config(world, out, resume_from_checkpoint=str(out / "checkpoints" / "global_step_4"), **options))
    assert best_of(out) == {"step": 2, "eval_wer": 50.0}
    assert names(out / "abandoned" / "1") == ["global_step_6"]


def test_a_best_model_that_is_gone_is_no_bar_to_the_next(world, tmp_path, monkeypatch, capsys):
    """The best evaluation fell between two checkpoints, then a better one replaced its model."""
    out, options = tmp_path / "run", {"eval_freq": 1, "max_steps": 4, "eval_data": world / "dev.jsonl"}
    measured(monkeypatch, 50.0, 60.0, 10.0, 70.0)
    Trainer(config(world, out, **options)).run()
    back = str(out / "checkpoints" / "global_step_2")
    trainer = Trainer(config(world, out, resume_from_checkpoint=back, **options))
    assert (trainer._state.best_step, trainer._state.best_wer) == (None, None)
    assert load_state(out / "checkpoints" / "global_step_2") == trainer._state, "a restart is told the same"
    assert not (out / "best").exists()
    measured(monkeypatch, 80.0, 90.0)
    assert trainer.run().best_step == 3
    assert "the model of its lowest WER, of step 1, is gone" in capsys.readouterr().err
    assert best_of(out) == {"step": 3, "eval_wer": 80.0}


def test_a_restart_goes_back_where_the_processes_before_it_had_not(world, tmp_path, monkeypatch, halted):
    out = tmp_path / "run"
    Trainer(config(world, out)).run()
    back = str(out / "checkpoints" / "global_step_2")

    def fails(*_):
        raise RuntimeError("CUDA out of memory")

    def start(restarts):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
        return Trainer(config(world, out, resume_from_checkpoint=back))

    for launch in range(2):  # the second launch names the same folder, and that the first went back there is no matter
        for restarts in range(2):
            with monkeypatch.context() as patch:
                patch.setattr("arkfast.train.trainer.read_state", fails)
                with pytest.raises(RuntimeError, match="out of memory"):
                    start(restarts)
            assert "global_step_6" in names(out / "checkpoints"), launch
        halted(start(2), 6)
        assert start(3)._state.step == 6, "what was saved since"
    assert names(out / "abandoned") == ["1", "2"]


def test_the_preflight_alone_leaves_the_run_as_it_is(world, tmp_path):
    out = tmp_path / "run"
    Trainer(config(world, out)).run()

    def content():
        return {path.relative_to(out): (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}

    before, options = content(), {"calibrate_only": True, "calibration_batches": 1}
    for wanted in (str(out / "checkpoints" / "global_step_2"), "auto"):
        state = Trainer(config(world, out, resume_from_checkpoint=wanted, **options)).run()
        assert state.step == (6 if wanted == "auto" else 2)
        assert content() == before
