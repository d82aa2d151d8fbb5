"""Adapters: nothing at first, nothing but them is trained, and what is written is a plain model that says what the adapted one says."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

from arkfast.engine import Engine
from arkfast.models import ArkasrProcessor, load_model
from arkfast.records import InputError
from arkfast.testing import synthetic_speech, tiny_checkpoint, tiny_model, write_wav
from arkfast.train.checkpoints.export_command import ExportConfig, export
from arkfast.train.config import TrainConfig
from arkfast.train.lora import PROJECTIONS, add_adapters, merged
from arkfast.train.trainer import Trainer

CPU = torch.device("cpu")


def adapted(rank=3):
    model = tiny_model(seed=1)
    add_adapters(model, rank=rank, alpha=6.0, seed=5, device=CPU)
    return model


def test_new_adapters_change_nothing_and_all_else_is_frozen():
    plain, model = tiny_model(seed=1), adapted()
    ids = torch.arange(30).view(2, 15)
    assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * len(PROJECTIONS) * 2
    assert all(name.endswith(("lora_a", "lora_b")) for name in trained)
    same = adapted()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True)), "drawn from the seed"


def test_a_merged_model_says_what_the_adapted_one_says():
    model = adapted()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    plain = tiny_model(seed=1)
    before = copy.deepcopy(plain.state_dict())
    plain.load_state_dict(merged(dict(model.named_parameters()) | {"lm_head.weight": model.lm_head.weight}, 2.0))
    assert all(not torch.equal(before[f"model.layers.1.mlp.{name}.weight"], plain.state_dict()[f"model.layers.1.mlp.{name}.weight"])
               for name in ("gate_proj", "up_proj", "down_proj"))  # fmt: skip
    ids = torch.arange(30).view(2, 15)
    torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits, atol=2e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    tiny_checkpoint(root / "student", seed=1)
    tiny_checkpoint(root / "teacher", seed=2, hidden_size=64, num_attention_heads=4)
    rows = []
    for i in range(4):
        write_wav(root / f"{i}.wav", synthetic_speech(0.5 + 0.13 * i, seed=i))
        rows.append({"audio": f"{i}.wav", "text": "one two", "id": f"clip{i}"})
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def config(world, out, **options):
    return TrainConfig(
        student_model=world / "student", teacher_model=world / "teacher", train_data=world / "train.jsonl", output_dir=out, opd_top_k=8,
        per_device_train_batch_size=2, learning_rate=3e-3, asr_opd_max_new_tokens=8,
        gates="off", dataloader_num_workers=0, seed=3, num_threads=1,
        model_dtype="float32", lora_rank=4, **options,
    )  # fmt: skip


def test_a_run_trains_the_adapters_and_writes_plain_models(world, tmp_path):
    trainer = Trainer(config(world, tmp_path / "run", max_steps=24, save_freq=12))
    trainer.run()
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])
    start, end = (load_file(folder / "model.safetensors") for folder in (world / "student", tmp_path / "run" / "last"))
    assert start.keys() == end.keys()
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert changed == {
        name for name in start if name.startswith("model.layers.") and name.split(".")[-2] in PROJECTIONS and name.endswith("weight")
    }
    state = load_file(tmp_path / "run" / "checkpoints" / "global_step_24" / "optimizer.safetensors")
    assert not any(name.endswith("proj.weight") for name in state), "a checkpoint holds the adapters, not the weights, in float32"
    # the adapted model in memory and the merged one from the folder transcribe alike
    batch, plain = trainer.learner.idle_batch(), load_model(tmp_path / "run" / "last", dtype="float32")
    said = [Engine(model, allowed=trainer.learner.allowed).rollout(batch, max_new_tokens=12).tokens for model in (trainer.model, plain)]
    assert torch.equal(*said)

    stopped = config(world, tmp_path / "again", max_steps=24, save_freq=12)
    first = Trainer(config(world, tmp_path / "again", max_steps=12, save_freq=12))
    first.run()
    Trainer(TrainConfig(**{**stopped.__dict__, "resume_from_checkpoint": "auto"})).run()
    resumed = load_file(tmp_path / "again" / "last" / "model.safetensors")
    assert all(torch.equal(resumed[name], end[name]) for name in end)

    export(ExportConfig(checkpoint=tmp_path / "run", output=tmp_path / "exported"))
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    assert all(torch.equal(exported[name], end[name]) for name in end)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A run of adapters on a bfloat16 model, with a running average."""
    root = tmp_path_factory.mktemp("averaged")
    tiny_checkpoint(root / "wide", seed=1)
    load_model(root / "wide").bfloat16().save_pretrained(root / "student")
    ArkasrProcessor.from_pretrained(root / "wide").save_pretrained(root / "student")
    write_wav(root / "a.wav", synthetic_speech(0.6, seed=1))
    (root / "train.jsonl").write_text(json.dumps({"audio": "a.wav", "text": "one two", "id": "a"}) + "\n")
    Trainer(TrainConfig(
        stage="sft", student_model=root / "student", train_data=root / "train.jsonl", output_dir=root / "run", max_steps=4, ema_decay=0.5,
        learning_rate=3e-3, dataloader_num_workers=0, num_threads=1, device="cpu", lora_rank=4, lora_alpha=8.0,
    )).run()  # fmt: skip
    return root


@pytest.mark.parametrize("kind", ["master", "ema"])
def test_adapters_are_exported_in_any_precision(averaged, tmp_path, kind):
    run, written = averaged / "run", averaged / "run" / {"master": "last", "ema": "ema"}[kind]
    export(ExportConfig(checkpoint=run, output=tmp_path / "same", weights=kind))
    same, there = (load_file(folder / "model.safetensors") for folder in (tmp_path / "same", written))
    assert same.keys() == there.keys()
    assert all(torch.equal(same[name], there[name]) for name in there), "what the run wrote itself"
    export(ExportConfig(checkpoint=run, output=tmp_path / "wide", weights=kind, dtype="float32"))
    wide, start = (load_file(folder / "model.safetensors") for folder in (tmp_path / "wide", averaged / "student"))
    state = load_file(run / "checkpoints" / "global_step_4" / "optimizer.safetensors")
    layer = "model.layers.1.mlp.down_proj"
    added = 2.0 * state[f"{kind}/{layer}.lora_b"] @ state[f"{kind}/{layer}.lora_a"]
    torch.testing.assert_close(wide[f"{layer}.weight"], start[f"{layer}.weight"].float() + added, rtol=0, atol=0)
    assert not torch.equal(wide[f"{layer}.weight"], there[f"{layer}.weight"].float()), "not the rounded file made wide again"


def test_adapters_without_the_model_they_belong_to_are_exported_as_they_were_written(averaged, tmp_path):
    (averaged / "student").rename(averaged / "gone")
    try:
        export(ExportConfig(checkpoint=averaged / "run", output=tmp_path / "same"))
        with pytest.raises(InputError, match=r"holds adapters of .*student, where no model is any more; put it back"):
            export(ExportConfig(checkpoint=averaged / "run", output=tmp_path / "ema", weights="ema"))
    finally:
        (averaged / "gone").rename(averaged / "student")


def test_nothing_else_can_be_frozen(world, tmp_path):
    with pytest.raises(ValueError, match="nothing but the adapters is trained"):
        config(world, tmp_path / "run", freeze=("adapter",))
