"""``arkfast export``: the weights of a checkpoint, whichever and however precise, as a model that loads."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from arkfast import cli
from arkfast.models import ArkasrProcessor, load_model
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav
from arkfast.train.config import TrainConfig
from arkfast.train.trainer import Trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A bfloat16 model trained for four steps with a running average and a frozen encoder."""
    root = tmp_path_factory.mktemp("world")
    tiny_checkpoint(root / "fp32", seed=1)
    model = load_model(root / "fp32").bfloat16()
    model.save_pretrained(root / "student")
    ArkasrProcessor.from_pretrained(root / "fp32").save_pretrained(root / "student")
    write_wav(root / "a.wav", synthetic_speech(0.6, seed=1))
    (root / "train.jsonl").write_text(json.dumps({"audio": "a.wav", "text": "one two", "id": "a"}) + "\n")
    Trainer(TrainConfig(
        stage="sft", student_model=root / "student", train_data=root / "train.jsonl", output_dir=root / "run", max_steps=4, save_freq=2,
        learning_rate=1e-3, dataloader_num_workers=0, ema_decay=0.5, freeze=("audio_encoder",), num_threads=1, device="cpu",
    )).run()  # fmt: skip
    return root / "run"


def export(*words):
    return cli.main(["export", *map(str, words)])


def test_the_master_weights_are_exported_in_any_precision(run, tmp_path, capsys):
    assert export("--checkpoint", run, "--output", tmp_path / "wide", "--dtype", "float32") == 0
    assert "global_step_4" in capsys.readouterr().err
    masters = load_file(run / "checkpoints" / "global_step_4" / "optimizer.safetensors")
    wide = load_file(tmp_path / "wide" / "model.safetensors")
    assert {w.dtype for w in wide.values()} == {torch.float32}
    trained = [name for name in wide if f"master/{name}" in masters]
    assert len(trained) > 20
    assert all(torch.equal(wide[name], masters[f"master/{name}"]) for name in trained)
    assert export("--checkpoint", run / "checkpoints" / "global_step_2", "--output", tmp_path / "early") == 0
    assert {w.dtype for w in load_file(tmp_path / "early" / "model.safetensors").values()} == {torch.bfloat16}
    for folder in (tmp_path / "wide", tmp_path / "early"):
        assert load_model(folder).dtype == (torch.float32 if folder.name == "wide" else torch.bfloat16)
        assert ArkasrProcessor.from_pretrained(folder).tokenizer.eos_token == "<|im_end|>"


def test_the_default_is_the_models_own_precision_and_frozen_parts_are_untouched(run, tmp_path):
    assert export("--checkpoint", run, "--output", tmp_path / "same") == 0
    same, last, start = (load_file(p / "model.safetensors") for p in (tmp_path / "same", run / "last", run.parent / "student"))
    assert same.keys() == last.keys() == start.keys()
    assert all(torch.equal(same[name], last[name]) for name in last)
    frozen = [name for name in start if name.startswith(("audio_encoder.whisper", "audio_encoder.layer_norm"))]
    assert all(torch.equal(last[name], start[name]) for name in frozen)
    assert sum(not torch.equal(last[name], start[name]) for name in start) > 10


def test_the_running_average_lies_between_start_and_end(run, tmp_path):
    assert export("--checkpoint", run, "--output", tmp_path / "ema", "--weights", "ema", "--dtype", "float32") == 0
    state = load_file(run / "checkpoints" / "global_step_4" / "optimizer.safetensors")
    ema = load_file(tmp_path / "ema" / "model.safetensors")
    name = "model.norm.weight"
    early = load_file(run / "checkpoints" / "global_step_2" / "optimizer.safetensors")
    assert torch.equal(ema[name], state[f"ema/{name}"])
    # Two steps of decay 0.5 from step 2's average: a quarter of it, a quarter of step 3's weights, half of step 4's.
    rest = ema[name] - 0.25 * early[f"ema/{name}"] - 0.5 * state[f"master/{name}"]
    assert (4 * rest - early[f"master/{name}"]).abs().max() < 3e-3
    assert not torch.equal(ema[name], state[f"master/{name}"])
    assert torch.equal(load_file(run / "ema" / "model.safetensors")[name], ema[name].bfloat16())


def test_what_cannot_be_exported_is_named(run, tmp_path, capsys):
    def refused(*words):
        assert export(*words) == 2
        return capsys.readouterr().err

    assert "exists and is not empty" in refused("--checkpoint", run, "--output", run)
    assert "not a checkpoint folder" in refused("--checkpoint", tmp_path, "--output", tmp_path / "x")
    copied = tmp_path / "copy"
    shutil.copytree(run, copied)
    state = copied / "checkpoints" / "global_step_4" / "optimizer.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    assert "damaged" in refused("--checkpoint", state.parent, "--output", tmp_path / "x")
    assert export("--checkpoint", copied, "--output", tmp_path / "before") == 0
    assert "global_step_4 is damaged" in capsys.readouterr().err
    shutil.rmtree(copied / "checkpoints" / "global_step_4")
    state = copied / "checkpoints" / "global_step_2"
    (state / "files.json").unlink()
    kept = {k: v for k, v in load_file(state / "optimizer.safetensors").items() if not k.startswith("ema/")}
    from safetensors.torch import save_file

    save_file(kept, state / "optimizer.safetensors")
    assert "holds none; give master" in refused("--checkpoint", copied, "--output", tmp_path / "y", "--weights", "ema")
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "y").exists()
