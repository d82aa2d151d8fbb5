"""What a checkpoint is worth: damage is found and named, other programs' folders are refused, what is best is kept."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from arkfast.records import InputError
from arkfast.train.checkpoints.run_folder import RunFolder, TrainerState, checkpoints
from arkfast.train.checkpoints.saver import Saver
from arkfast.train.checkpoints.tensors import damage, read_state
from arkfast.train.config import TrainConfig
from arkfast.train.parallel import Parallel

TENSORS = {"master/w": torch.arange(6.0).reshape(2, 3), "exp_avg/w": torch.ones(2, 3), "step/w": torch.tensor(4.0)}


def config(out, **overrides):
    return TrainConfig(**{"stage": "sft", "student_model": Path("s"), "train_data": Path("t"), "output_dir": out, **overrides})


def state(step, best=None):
    return TrainerState(step=step, cursor=10 * step, best_wer=None if best is None else 5.0, best_step=best, skipped=0)


def export(folder):
    save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")


def saved(root, steps, *, background=False, best=None, **options):
    """A run's folder with checkpoints of these steps."""
    folder = RunFolder(config(root, **options)).claim()
    saver = Saver(folder, Parallel("cpu", environment={}), sharded=False, background=background)
    for step in steps:
        saver.save(state(step, best if best is not None and step >= best else None), export, TENSORS)
    saver.close()
    return RunFolder(config(root, **{"resume_from_checkpoint": "auto", **options}))


def names(root):
    return sorted(path.name for path in (root / "checkpoints").iterdir())


@pytest.mark.parametrize("background", [False, True])
def test_what_is_saved_is_read_again(tmp_path, background):
    folder = saved(tmp_path, [1, 2], background=background)
    found = folder.find_resume("latest")
    assert found == tmp_path / "checkpoints" / "global_step_2"
    assert damage(found) is None
    blank = {name: torch.full_like(value, -1) for name, value in TENSORS.items()} | {"ema/w": torch.zeros(2, 3)}
    read = read_state(found, blank, None)
    assert read.keys() == TENSORS.keys(), "what is not there is not made up"
    assert all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)
    assert "weight" in load_file(found / "model.safetensors")


def test_a_background_save_copies_before_it_returns(tmp_path):
    weight = torch.ones(3)
    saver = Saver(RunFolder(config(tmp_path)), Parallel("cpu", environment={}), sharded=False, background=True)
    saver.save(state(1), export, {"master/w": weight})
    weight.zero_()
    saver.close()
    assert torch.equal(load_file(tmp_path / "checkpoints/global_step_1/optimizer.safetensors")["master/w"], torch.ones(3))


def test_a_background_save_that_fails_says_so_and_leaves_the_last_one(tmp_path):
    folder = RunFolder(config(tmp_path))
    saver = Saver(folder, Parallel("cpu", environment={}), sharded=False, background=True)
    saver.save(state(1), export, TENSORS)

    def full(_folder):
        raise OSError("disk full")

    saver.save(state(2), full, TENSORS)
    with pytest.raises(OSError, match="disk full"):
        saver.save(state(3), export, TENSORS)
    assert folder.find_resume("latest").name == "global_step_1"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: truncate(folder / "optimizer.safetensors"), r"optimizer.safetensors has \d+ bytes, \d+ were written"),
        (lambda folder: truncate(folder / "model.safetensors"), "model.safetensors has"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: truncate(folder / "files.json"), "JSONDecodeError"),
        (lambda folder: (folder / "trainer_state.json").write_text("{"), "JSONDecodeError"),
        (lambda folder: (folder / "optimizer.safetensors").write_bytes(bytes((folder / "optimizer.safetensors").stat().st_size)), "Error"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, harm, said):
    folder, notes = saved(tmp_path, [1, 2]), []
    harm(tmp_path / "checkpoints" / "global_step_2")
    assert folder.find_resume("auto", note=notes.append).name == "global_step_1"
    assert len(notes) == 1
    assert "global_step_2 is damaged" in notes[0]
    with pytest.raises(InputError, match=rf"global_step_2: damaged \(.*{said}"):
        folder.find_resume(str(tmp_path / "checkpoints" / "global_step_2"))
    harm(tmp_path / "checkpoints" / "global_step_1")
    with pytest.raises(InputError, match=r"no checkpoint is whole: .*global_step_2.*global_step_1.*remove them to start anew"):
        folder.find_resume("auto", note=notes.append)


def test_an_unfinished_folder_is_no_checkpoint(tmp_path):
    folder = saved(tmp_path, [1])
    shutil.copytree(tmp_path / "checkpoints/global_step_1", tmp_path / "checkpoints/.global_step_2.new")
    assert folder.find_resume("auto").name == "global_step_1"


def test_checkpoints_without_a_seal_are_those_of_earlier_versions(tmp_path):
    folder = saved(tmp_path, [1])
    (tmp_path / "checkpoints/global_step_1/files.json").unlink()
    assert folder.find_resume("latest").name == "global_step_1"
    truncate(tmp_path / "checkpoints/global_step_1/optimizer.safetensors")
    with pytest.raises(InputError, match="no checkpoint is whole"):
        folder.find_resume("latest", note=lambda text: None)


def test_the_newest_are_kept_and_the_best(tmp_path):
    saved(tmp_path, [1, 2, 3, 4, 5], best=2, max_ckpt_to_keep=2)
    assert names(tmp_path) == ["global_step_2", "global_step_4", "global_step_5"]


@pytest.mark.parametrize("wanted", ["auto", "folder"])
def test_checkpoints_of_the_original_are_refused_with_what_to_do(tmp_path, wanted):
    theirs = tmp_path / "checkpoints" / "global_step_100"
    folder = saved(tmp_path, [])
    theirs.mkdir(parents=True)
    (theirs / "model_world_size_8_rank_0.pt").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"model_world_size_8_rank_0\.pt, a shard of .*merge them .*give that folder as --student_model"):
        folder.find_resume(str(theirs) if wanted == "folder" else "auto")


def test_a_run_claimed_with_another_number_of_micro_batches_says_which(tmp_path):
    RunFolder(config(tmp_path), micro_batches=4).claim()
    with pytest.raises(InputError, match=r"micro_batches_per_step 4 there, 2 here\); give --micro_batches_per_step 4 to go on"):
        RunFolder(config(tmp_path, resume_from_checkpoint="auto"), micro_batches=2)
    claim = json.loads((tmp_path / "run.json").read_text())
    identity = claim["identity"]
    identity["gradient_accumulation_steps"] = identity.pop("micro_batches_per_step")
    (tmp_path / "run.json").write_text(json.dumps(claim))
    RunFolder(config(tmp_path, resume_from_checkpoint="auto"), micro_batches=4)


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_no_half_of_one(tmp_path, monkeypatch):
    remove = shutil.rmtree

    def killed(path, **options):
        (path / "model.safetensors").unlink()
        raise KeyboardInterrupt

    saved(tmp_path, [1])
    with monkeypatch.context() as patch:
        patch.setattr("arkfast.files.names.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            saved(tmp_path, [2], max_ckpt_to_keep=1, resume_from_checkpoint="auto")
    assert shutil.rmtree is remove
    assert all(damage(path, full=True) is None for path in checkpoints(tmp_path).values())
    RunFolder(config(tmp_path, resume_from_checkpoint="auto"))
    assert names(tmp_path) == ["global_step_2"], "what is left of the other is cleared away"
