"""A run is known by what it is made of, not by what that is called: rows as planned, models by their bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from arkfast.models.contents import SAMPLE, contents_of_model
from arkfast.records import InputError, Utterance
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav
from arkfast.train.checkpoints.export_command import ExportConfig, export
from arkfast.train.checkpoints.identity import contents_of_rows
from arkfast.train.config import TrainConfig
from arkfast.train.trainer import Trainer

CLIPS = 12


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A checkpoint and a manifest of twelve rows with durations."""
    tiny_checkpoint(tmp_path / "student", seed=1)
    for i in range(3):
        write_wav(tmp_path / f"{i}.wav", synthetic_speech(0.4 + 0.2 * i, seed=i))
    write_rows(tmp_path / "train.jsonl", [0.4 + 0.2 * (i % 3) for i in range(CLIPS)])
    return tmp_path


def write_rows(path: Path, durations: list[float]) -> None:
    rows = [{"audio": f"{i % 3}.wav", "text": "one", "id": f"clip{i}", "duration": seconds} for i, seconds in enumerate(durations)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(here: Path, **overrides: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "stage": "sft", "student_model": here / "student", "train_data": here / "train.jsonl", "output_dir": here / "run", "seed": 3,
        "per_device_train_batch_size": 4, "batch_seconds": 2.0, "save_freq": 1, "max_ckpt_to_keep": 99, "dataloader_num_workers": 0,
        "model_dtype": "float32", "num_threads": 1, "device": "cpu", "gates": "off", "calibration_batches": 0, "learning_rate": 1e-3,
    }  # fmt: skip
    return TrainConfig(**{**values, **overrides})


def epochs(run: Path) -> list[float]:
    return [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def rewritten(here: Path, change: Callable[[dict[str, torch.Tensor]], object], folder: str = "student") -> None:
    """The folder's weights, changed."""
    path = here / folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_rows_of_other_lengths_are_refused_and_where_they_are_allowed_the_epochs_end_whole(here, halted, capsys):
    halted(Trainer(config(here, total_epochs=2)), 2)
    write_rows(here / "train.jsonl", [1.9 if i < 6 else 0.4 for i in range(CLIPS)])
    again = {"total_epochs": 2, "resume_from_checkpoint": "auto"}
    with pytest.raises(InputError, match=r"belongs to another run \(other rows to train on: other lengths\); .*--allow_changed rows"):
        Trainer(config(here, **again))
    state = Trainer(config(here, allow_changed=("rows",), **again)).run()
    assert state.cursor == 2 * CLIPS, "no epoch ends early, and none breaks off"
    assert epochs(here / "run")[-1] == 2.0
    assert "--allow_changed rows: goes on with other rows to train on: other lengths" in capsys.readouterr().err
    assert Trainer(config(here, **again)).run().cursor == 2 * CLIPS, "these are the run's rows from now on"


def test_a_clip_that_is_mended_under_skip_is_another_length(here, halted):
    (here / "2.wav").write_bytes(b"RIFF and nothing more")
    rows = [{"audio": f"{i % 3}.wav", "text": "one", "id": f"clip{i}"} for i in range(CLIPS)]
    (here / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"on_bad_audio": "skip:0.5", "batch_seconds": 0.0}
    halted(Trainer(config(here, **options)), 1)
    write_wav(here / "2.wav", synthetic_speech(0.8, seed=2))
    with pytest.raises(InputError, match="other rows to train on: other lengths"):
        Trainer(config(here, resume_from_checkpoint="auto", **options))


@pytest.mark.parametrize("epochs_then", [1, 3])
def test_more_epochs_take_up_where_the_data_stands(here, epochs_then):
    """The last step of an epoch is cut short, so that steps do not tell where the data stands."""
    options = {"batch_seconds": 0.0, "micro_batches_per_step": 2}
    assert Trainer(config(here, **options)).run().step == 2, "three batches"
    state = Trainer(config(here, total_epochs=epochs_then, resume_from_checkpoint="auto", **options)).run()
    assert (state.cursor, state.step) == (epochs_then * CLIPS, 2 if epochs_then == 1 else 2 + 3)


@pytest.mark.parametrize("part", ["student_model", "teacher_model"])
def test_another_model_behind_the_same_name_is_refused(here, part, halted, capsys):
    tiny_checkpoint(here / "teacher", seed=2)
    options: dict[str, Any] = {
        "stage": "td",
        "teacher_model": here / "teacher",
        "asr_opd_max_new_tokens": 4,
        "lora_rank": 2,
        "max_steps": 3,
    }
    halted(Trainer(config(here, **options)), 1)
    name = part.partition("_")[0]
    shutil.rmtree(here / name)
    tiny_checkpoint(here / name, seed=9)
    with pytest.raises(InputError, match=rf"holds another run \(another {part}: other weights\); .*--allow_changed {part} to go on all"):
        Trainer(config(here, resume_from_checkpoint="auto", **options))
    assert Trainer(config(here, resume_from_checkpoint="auto", allow_changed=(part,), **options)).run().step == 3
    assert f"--allow_changed {part}: goes on with another {part}: other weights" in capsys.readouterr().err


def test_adapters_are_not_merged_into_another_base(here):
    Trainer(config(here, lora_rank=2, max_steps=1)).run()
    order = ExportConfig(checkpoint=here / "run", output=here / "model", dtype="bfloat16")
    rewritten(here, lambda tensors: tensors["model.norm.weight"].mul_(1.01))
    with pytest.raises(InputError, match=r"adapters of .*student, where another model stands by now \(other weights\)"):
        export(order)
    assert not (here / "model").exists()


def test_the_same_files_under_another_path_or_through_a_link_are_the_same_run(here, halted):
    tiny_checkpoint(here / "teacher", seed=2)
    options: dict[str, Any] = {"stage": "td", "teacher_model": here / "teacher", "asr_opd_max_new_tokens": 4, "max_steps": 3}
    halted(Trainer(config(here, **options)), 1)
    there = here / "there"
    there.mkdir()
    (there / "link").symlink_to(here / "student")
    shutil.copytree(here / "teacher", there / "copy")
    for path in (*here.glob("*.wav"), here / "train.jsonl"):
        shutil.copy(path, there / path.name)
    moved = {"student_model": there / "link", "teacher_model": there / "copy", "train_data": there / "train.jsonl"}
    assert Trainer(config(here, resume_from_checkpoint="auto", **{**options, **moved})).run().step == 3


def row(**fields: Any) -> Utterance:
    return Utterance(
        **{"id": "a", "audio": "/data/a.wav", "begin": 0.0, "end": 1.0, "text": "one", "language": "en", "extra": {}, **fields}
    )


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"id": "b"}, "ids and segments"), ({"end": 0.9}, "ids and segments"), ({"extra": {"audio": "b.wav"}}, "audio paths"),
        ({"text": "two"}, "texts"), ({"language": None}, "languages"),
    ],
)  # fmt: skip
def test_each_field_of_a_row_has_its_part(change, part):
    before, after = contents_of_rows([row()], [1.0]), contents_of_rows([row(**change)], [1.0])
    assert [name for name in before if before[name] != after[name]] == [part]
    assert contents_of_rows([row()], [1.5])["lengths"] != before["lengths"]
    assert contents_of_rows([row(audio="/elsewhere/a.wav", extra={"audio": "a.wav"})], [1.0]) == contents_of_rows(
        [row(extra={"audio": "a.wav"})], [1.0]
    ), "the audio as the manifest writes it"


def test_weights_are_known_whichever_files_they_stand_in(here, tmp_path):
    folder, tensors = here / "student", load_file(here / "student" / "model.safetensors")
    before = contents_of_model(folder)
    assert {"config.json", "tokenizer.json", "weights"} <= before.keys()
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    (folder / "model.safetensors").unlink()
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / file, metadata={"written": "by another version"})
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert contents_of_model(folder) == before
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 1e-3}))
    after = contents_of_model(folder)
    assert [name for name in before if before[name] != after[name]] == ["config.json"]


@pytest.mark.parametrize("place", [0, -1, "middle"])
def test_a_change_within_the_samples_of_a_large_tensor_is_seen(tmp_path, place):
    size = 8 * SAMPLE
    weight = torch.zeros(size)
    save_file({"w": weight}, tmp_path / "model.safetensors")
    before = contents_of_model(tmp_path)
    weight[size // 2 if place == "middle" else place] = 1.0
    save_file({"w": weight}, tmp_path / "model.safetensors")
    assert contents_of_model(tmp_path) != before


def test_what_is_no_checkpoint_has_no_contents(tmp_path):
    assert contents_of_model(tmp_path / "absent") == {}
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    assert contents_of_model(tmp_path).keys() == {"weights"}, "a damaged file is told when it is loaded"
