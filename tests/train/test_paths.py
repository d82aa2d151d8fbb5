"""What the flags name is looked at before anything is read: each fault alone, in our words, in a moment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arkfast.records import InputError
from arkfast.testing import tiny_checkpoint
from arkfast.train.config import TrainConfig
from arkfast.train.paths import check_paths


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and what is none in one way each."""
    root = tmp_path_factory.mktemp("world")
    tiny_checkpoint(root / "student", seed=1)
    (root / "train.jsonl").write_text("")
    for name in ("empty", "whisper", "no_tokenizer", "no_weights", "pickled", "shard_missing"):
        (root / name).mkdir()
        if name != "empty":
            kind = "whisper" if name == "whisper" else "arkasr"
            (root / name / "config.json").write_text(json.dumps({"model_type": kind}))
    (root / "no_tokenizer" / "model.safetensors").write_text("")
    (root / "no_weights" / "tokenizer.json").write_text("")
    (root / "pickled" / "pytorch_model.bin").write_text("")
    (root / "shard_missing" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    (root / "file").write_text("")
    return root


def config(root: Path, **fields: object) -> TrainConfig:
    plain = {"stage": "opd", "student_model": "student", "teacher_model": "student", "train_data": "train.jsonl", "output_dir": "run"}
    paths = {name: value if name == "stage" else root / str(value) for name, value in {**plain, **fields}.items()}
    return TrainConfig(**paths)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"student_model": "absent"}, "--student_model .*absent: no such folder"),
        ({"student_model": "empty"}, "--student_model .*empty: no config.json there"),
        ({"student_model": "whisper"}, "--student_model .*model_type is 'whisper', expected 'arkasr'"),
        ({"student_model": "no_tokenizer"}, "--student_model .*no_tokenizer: no tokenizer there"),
        ({"student_model": "no_weights"}, "--student_model .*no_weights: no model.safetensors"),
        ({"student_model": "pickled"}, "--student_model .*holds pytorch_model.bin but no safetensors weights"),
        ({"student_model": "shard_missing"}, "--student_model .*shards named by model.safetensors.index.json are missing"),
        ({"teacher_model": "absent"}, "--teacher_model .*absent: no such folder"),
        ({"teacher_model": "empty"}, "--teacher_model .*empty: no config.json there"),
        ({"train_data": "absent.jsonl"}, "--train_data: .*absent.jsonl: cannot be read"),
        ({"eval_data": "student"}, "--eval_data: .*student: cannot be read .it is a folder."),
        ({"output_dir": "file"}, "--output_dir .*file: .*file is a file"),
        ({"output_dir": "file/run"}, "--output_dir .*file is a file"),
    ],
)
def test_each_fault_is_named_with_its_flag(world: Path, fields: dict[str, object], cause: str) -> None:
    with pytest.raises(InputError, match=cause):
        check_paths(config(world, **fields))


def test_what_is_there_passes_and_nothing_is_made(world: Path) -> None:
    check_paths(config(world, eval_data="train.jsonl"))
    check_paths(config(world, stage="sft", teacher_model="absent"))
    assert not (world / "run").exists()


def test_a_repository_is_not_asked_for(world: Path) -> None:
    given = config(world)
    check_paths(TrainConfig(**{**vars(given), "student_model": Path("AutoArk-AI/ARK-ASR-0.6B"), "teacher_model": Path("a/b")}))


def test_training_looks_before_it_reads_a_row(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import arkfast.train.trainer as trainer

    monkeypatch.setattr(trainer, "read_rows", lambda *_: pytest.fail("rows were read"))
    with pytest.raises(InputError, match="no tokenizer there"):
        trainer.Trainer(config(world, student_model="no_tokenizer"))


def test_torchrun_is_told_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The file that torchrun reads, in the layout that it prints the cause from."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    from arkfast import cli

    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    words = ["--stage", "sft", "--student_model", str(tmp_path), "--train_data", str(tmp_path / "a"), "--output_dir", str(tmp_path / "run")]
    assert cli.main(["train", *words]) == 2
    (said,) = capfd.readouterr().err.splitlines()
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(tmp_path / "error.json"))
    lines = str(ChildFailedError("scripts/train.py", {0: failure})).rstrip().splitlines()
    assert lines[-2].strip() == f"traceback : {said}"
