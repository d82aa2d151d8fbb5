"""Every way in which training can be given something wrong ends in one line on standard error, with an exit code and no traceback."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from arkfast import cli, files
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav

Words = dict[str, object]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of one vocabulary, one of another, and a manifest of three clips."""
    root = tmp_path_factory.mktemp("world")
    tiny_checkpoint(root / "student", seed=1)
    tiny_checkpoint(root / "teacher", seed=2)
    tiny_checkpoint(root / "other", seed=2, vocab_size=300)
    write_wav(root / "a.wav", synthetic_speech(0.5, seed=1))
    manifest(root / "train.jsonl", *[{"text": "one two"}] * 3)
    return root


def manifest(path: Path, *rows: dict[str, Any]) -> Path:
    audio = str(path.parent / "a.wav")
    path.write_text("".join(json.dumps({"audio": audio, "id": f"r{i}", **row}) + "\n" for i, row in enumerate(rows)))
    return path


def student(world: Path, here: Path) -> Path:
    shutil.copytree(world / "student", here / "model")
    return here / "model"


def edited(folder: Path, name: str, **fields: Any) -> Path:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **fields}))
    return folder


def qwen3(world: Path, here: Path) -> Words:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    Qwen3ForCausalLM(Qwen3Config(vocab_size=64, head_dim=16, **sizes)).save_pretrained(here / "qwen3")
    return {"student_model": here / "qwen3"}


def no_tokenizer(world: Path, here: Path) -> Words:
    folder = student(world, here)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    return {"student_model": folder}


def broken_tokenizer(world: Path, here: Path) -> Words:
    folder = student(world, here)
    (folder / "tokenizer.json").write_text("{")
    return {"student_model": folder}


def anothers_tokenizer(world: Path, here: Path) -> Words:
    folder = student(world, here)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(world / "other" / name, folder / name)
    return {"student_model": folder}


def cut_weights(world: Path, here: Path) -> Words:
    folder = student(world, here)
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 100)
    return {"student_model": folder}


def pickled_weights(world: Path, here: Path) -> Words:
    folder = student(world, here)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return {"student_model": folder}


def too_few_weights(world: Path, here: Path) -> Words:
    folder = student(world, here)
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return {"student_model": folder}


def broken_config(world: Path, here: Path) -> Words:
    folder = student(world, here)
    (folder / "config.json").write_text("{")
    return {"student_model": folder}


def text_missing(world: Path, here: Path) -> Words:
    shutil.copy(world / "a.wav", here / "a.wav")
    return {"train_data": manifest(here / "rows.jsonl", {"text": "one"}, {"text": "two"}, {"text": " "}, {"text": "four"})}


def reference_missing(world: Path, here: Path) -> Words:
    shutil.copy(world / "a.wav", here / "a.wav")
    return {"eval_data": manifest(here / "rows.jsonl", {"text": "one"}, {})}


def output_is_a_file(world: Path, here: Path) -> Words:
    (here / "run").write_text("")
    return {"output_dir": here / "run"}


CASES: list[tuple[Callable[[Path, Path], Words] | Words, str]] = [
    (qwen3, "model_type is 'qwen3', expected 'arkasr'"),
    (no_tokenizer, "no tokenizer there (none of tokenizer.json, "),
    (broken_tokenizer, "its tokenizer or processor cannot be loaded"),
    (anothers_tokenizer, "its tokenizer is another model's"),
    (cut_weights, "not a complete safetensors file"),
    (pickled_weights, "holds pytorch_model.bin but no safetensors weights"),
    (too_few_weights, "missing: model.norm.weight"),
    (broken_config, "cannot be read as JSON"),
    (text_missing, "rows.jsonl:3: no text; supervised training needs a transcript in every row"),
    (reference_missing, "rows.jsonl:2: no text"),
    (output_is_a_file, "run"),
    ({"student_model": "absent/folder/three"}, "absent/folder/three"),
    ({"train_data": "absent.jsonl"}, "absent.jsonl"),
    ({"resume_from_checkpoint": "latest"}, "holds no checkpoint"),
    ({"resume_from_checkpoint": "nowhere"}, "nowhere"),
    ({"stage": "opd", "teacher_model": "other"}, "its vocabulary differs"),
    ({"stage": "opd", "teacher_model": "other", "teacher_backend": "none_such"}, "there is no such backend"),
    ({"freeze": "wings"}, "--freeze wings"),
    ({"learning_rate": 0}, "--learning_rate: must be above 0"),
    ({"no_such_flag": 1}, "unknown flag --no_such_flag"),
]


@pytest.mark.parametrize(("wrong", "cause"), CASES, ids=[wrong.__name__ if callable(wrong) else str(wrong) for wrong, _ in CASES])
def test_what_is_wrong_with_the_input_is_one_line(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], wrong: Callable[[Path, Path], Words] | Words, cause: str
) -> None:
    words = wrong(world, tmp_path) if callable(wrong) else inside(world, wrong)
    capfd.readouterr()
    assert trained(world, tmp_path, **words) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1, said
    assert said[0].startswith("arkfast train: error: ")
    assert cause in said[0]


def inside(world: Path, words: Words) -> Words:
    return {name: world / "other" if value == "other" else value for name, value in words.items()}


def trained(world: Path, here: Path, **more: object) -> int:
    plain: Words = {
        "stage": "sft", "student_model": world / "student", "train_data": world / "train.jsonl", "output_dir": here / "run",
        "max_steps": 3, "save_freq": 1, "dataloader_num_workers": 0, "device": "cpu", "gates": "off", "asr_opd_max_new_tokens": 8,
    }  # fmt: skip
    words = [word for name, value in {**plain, **more}.items() for word in (f"--{name}", str(value))]
    try:
        return cli.main(["train", *words])
    except SystemExit as error:  # as the parser ends on an unknown flag
        return int(error.code or 0)


def test_texts_are_looked_at_before_a_model_is_loaded(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import arkfast.train.trainer as trainer

    monkeypatch.setattr(trainer, "load_models", lambda *_, **__: pytest.fail("a model was loaded"))
    assert trained(world, tmp_path, **text_missing(world, tmp_path)) == 2
    assert "rows.jsonl:3: no text" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["metrics.jsonl", "optimizer.safetensors", "run.json", "trainer_state.json", "last"])
def test_a_full_disk_is_one_line(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    hit = []

    def full(path: Path, _point: str) -> None:
        if name in path.name:
            hit.append(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "fault", full)
    assert trained(world, tmp_path) == 2
    assert hit
    said = [line for line in capfd.readouterr().err.splitlines() if "error" in line or "Traceback" in line]
    assert len(said) == 1, said
    assert said[0].startswith("arkfast train: error: ")
    assert "No space left on device" in said[0]
    assert [path for pattern in (".*.new", ".*.old") for path in tmp_path.rglob(pattern)] == []


@pytest.mark.parametrize("command", ["report", "export"])
def test_a_full_disk_leaves_nothing_beside_a_report_or_an_export(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    assert trained(world, tmp_path) == 0
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / ("r.html" if command == "report" else "m")
    given = [str(tmp_path / "run")] if command == "report" else ["--checkpoint", str(tmp_path / "run")]
    capfd.readouterr()

    def full(path: Path, point: str) -> None:
        if point == "fsync":  # when what was written goes to the disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "fault", full)
    assert cli.main([command, *given, "--output", str(output)]) == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith(f"arkfast {command}: error: {output}: cannot be written (No space left on device)")
    assert list(output.parent.iterdir()) == []


def test_a_device_without_room_is_one_line(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import arkfast.train.trainer as trainer

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")

    monkeypatch.setattr(trainer, "sft_step", full)
    assert trained(world, tmp_path) == 1
    (said,) = (line for line in capfd.readouterr().err.splitlines() if "error" in line or "Traceback" in line)
    assert said.startswith("arkfast train: error: out of memory: CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert "--per_device_train_batch_size" in said
