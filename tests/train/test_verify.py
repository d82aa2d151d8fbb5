"""``arkfast verify`` and ``arkfast calibrate``: what holds together passes, and each fault is named by its check."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from arkfast import cli
from arkfast.models.family import find_family
from arkfast.records import InputError
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav
from arkfast.train.checks import interface_checks
from arkfast.train.config import TrainConfig


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a teacher of its vocabulary, one of another, and a manifest of four clips."""
    root = tmp_path_factory.mktemp("world")
    tiny_checkpoint(root / "student", seed=1)
    tiny_checkpoint(root / "teacher", seed=2, hidden_size=64, num_attention_heads=4)
    tiny_checkpoint(root / "other", seed=2, vocab_size=300)
    rows = []
    for i in range(4):
        write_wav(root / f"{i}.wav", synthetic_speech(0.5 + 0.1 * i, seed=i))
        rows.append({"audio": f"{i}.wav", "text": "one two", "id": f"clip{i}"})
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def lacks_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def has_a_wrong_shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"][:-1].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def has_no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def has_anothers_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder.parent / "other" / name, folder / name)


def has_another_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("'<|assistant|>'", "'<|user|>'"))


def ends_otherwise(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["eos_token_id"] -= 1
    (folder / "config.json").write_text(json.dumps(config))


def generates_otherwise(folder: Path) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [3, 4]}))


@pytest.mark.parametrize(
    ("broken", "check", "cause"),
    [
        (lacks_a_tensor, "weights", "missing: model.norm.weight"),
        (has_a_wrong_shape, "weights", "wrong shape: model.norm.weight [47], expected [48]"),
        (has_no_tokenizer, "tokenizer", "its tokenizer cannot be loaded"),
        (has_anothers_tokenizer, "tokenizer", "its tokenizer is another model's"),
        (has_another_template, "prompt template", "wrong prompt: its chat_template.jinja makes"),
        (ends_otherwise, "end token", "swapped tokenizer: its end token is id"),
        (generates_otherwise, "end token", "its generation_config.json ends answers with id 3, 4, its config.json and tokenizer with"),
    ],
)
def test_each_fault_is_a_failed_check_with_its_cause(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: Callable[[Path], None], check: str, cause: str
) -> None:
    for name in ("student", "other"):
        shutil.copytree(world / name, tmp_path / name)
    broken(tmp_path / "student")
    assert cli.main(["verify", "--model_path", str(tmp_path / "student")]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED")]
    assert any(line.split(None, 1)[1].startswith(check) and cause in line for line in failed), failed


def test_what_holds_together_passes_and_says_what_was_seen(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["verify", "--model_path", world / "student", "--teacher_model", world / "teacher", "--teacher_backend", "arkasr"]
    assert cli.main([str(word) for word in words]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"all {len(lines)} checks passed"
    names = [line[8:].partition("  ")[0] for line in lines]
    assert names == ["revision", "weights", "tokenizer", "prompt ids", "prompt template", "end token", "vocabulary", "teacher revision",
                     "teacher"]  # fmt: skip
    assert "<|user|><|begin_of_audio|><|audio|><|end_of_audio|>Please transcribe this audio.<|assistant|>" in lines[4]


def test_a_teacher_of_another_vocabulary_fails_its_check(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "--model_path", str(world / "student"), "--teacher_model", str(world / "other")]) == 1
    (failed,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED"))
    assert "its vocabulary differs from --student_model's" in failed


def test_a_checkpoint_that_is_not_there_is_wrong_input(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "--model_path", str(world / "absent")]) == 2
    assert cli.main(["verify", "--model_path", str(world)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert [line.startswith("arkfast verify: error: ") for line in said.err.splitlines()] == [True, True]


def test_a_tokenizer_may_have_added_tokens_past_the_head_and_no_text_there(world: Path) -> None:
    family = find_family(world / "student")
    model = family.shell(world / "student", attn_implementation="sdpa")
    interface = family.interface(family.tokenizer(world / "student"), model, where="here")
    added = len(interface.tokenizer.added_tokens_decoder)
    size = len(interface.tokenizer)

    def failed(vocab_size: int) -> set[str]:
        checks = interface_checks(interface, "asr", model.audio_input, vocab_size, world / "student", "--model_path")
        return {check.name for check in checks if check.failed}

    assert failed(size) == set()
    assert failed(size - added) == {"prompt ids"}
    assert failed(size - added - 1) == {"prompt ids", "vocabulary"}


def calibrated(world: Path, capsys: pytest.CaptureFixture[str], *more: object) -> tuple[int, dict[str, str], list[str]]:
    """(exit code, the report's lines, the errors)."""
    words = ["--student_model", world / "student", "--train_data", world / "train.jsonl", "--output_dir", world / "none",
             "--per_device_train_batch_size", 2, "--calibration_batches", 2, "--opd_top_k", 8, "--asr_opd_max_new_tokens", 8,
             "--dataloader_num_workers", 0, "--device", "cpu", "--max_steps", 100, "--gradient_accumulation_steps", 3]  # fmt: skip
    code = cli.main(["calibrate", *map(str, (*words, *more))])
    said = capsys.readouterr()
    assert not (world / "none").exists(), "it writes nothing"
    assert sum(line.startswith("[calibration summary] {") for line in said.out.splitlines()) == 1
    pairs = (line.partition("  ") for line in said.out.splitlines() if not line.startswith("[calibration"))
    return code, {name: text.strip() for name, _, text in pairs}, [line for line in said.err.splitlines() if "error:" in line]


def test_a_student_under_itself_has_nothing_to_learn_and_the_report_says_so(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, errors = calibrated(world, capsys, "--teacher_model", world / "student", "--gate_unfinished", 0)
    # It is random, so that it must be refused for what it says of the references, and for nothing else.
    assert code in (0, 1)
    assert found["overlap of the lists by count"] == "100 %"
    assert found["overlap by mass"] == "100 % of the teacher's, 100 % of the student's"
    assert found["union of the top-k lists (VUSS)"] == "8.0 ids of 16"
    assert "100 steps" in found["time, without the optimizer"]
    assert len(errors) == code


def test_the_report_of_another_teacher(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, errors = calibrated(world, capsys, "--teacher_model", world / "teacher")
    assert code == 1
    assert "rollouts do not end" in found["no-go"] or "rollouts do not end" in errors[0]
    assert len(errors) == 1
    assert errors[0].startswith("arkfast calibrate: error: preflight: ")
    loss, gradient = found["student as its own teacher"].removeprefix("loss ").split(", gradient ")
    assert float(loss) < 1e-5
    assert float(gradient.split(" %")[0]) < 0.1
    mass = float(found["overlap by mass"].split(" %")[0])
    assert 0 < mass < 90, "two random models agree on little"
    assert 0 < float(found["teacher's entropy on its list"].split()[0]) < 2.08, "ln 8"
    assert found["texts that do not come back from the tokenizer"] == "0 of 4"
    assert found["check: prompt ids"]


def test_rounding_refuses_no_policy_gradient(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In bfloat16 a student and itself differ by rounding, in which an estimate from single tokens is of the first order."""
    flags = ("--opd_objective", "policy_gradient", "--rollout_temperature", 1, "--model_dtype", "bfloat16")
    _, found, errors = calibrated(world, capsys, "--teacher_model", world / "teacher", *flags)
    loss, _ = found["student as its own teacher"].removeprefix("loss ").split(", gradient ")
    assert float(loss) < 1e-4
    assert not any("as its own teacher" in error for error in errors)
    assert "union of the top-k lists (VUSS)" not in found, "the loss compares no lists"


def test_a_support_is_named_as_it_was_chosen(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, found, _ = calibrated(world, capsys, "--teacher_model", world / "teacher", "--support", "teacher")
    assert found["ids of --support teacher"] == "8.0"


@pytest.mark.parametrize("stage", ["td", "sft"])
def test_other_stages_are_looked_at_too(world: Path, capsys: pytest.CaptureFixture[str], stage: str) -> None:
    teacher = ("--teacher_model", world / "teacher") if stage == "td" else ()
    code, found, errors = calibrated(world, capsys, "--stage", stage, *teacher)
    assert (code, errors) == (0, [])
    assert found["go"] == "nothing speaks against this start"
    assert found["digital silence"] == "0"


def test_gates_that_are_off_judge_nothing_and_say_so(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, _ = calibrated(world, capsys, "--teacher_model", world / "teacher", "--gates", "off")
    assert code == 0
    assert found["go"] == "nothing was judged: --gates off"


@pytest.mark.parametrize("flag", ["max_audio_seconds", "asr_opd_max_new_tokens"])
def test_training_refuses_what_transcribe_refuses_for_want_of_positions(world: Path, tmp_path: Path, flag: str) -> None:
    """The tiny model has 4096 positions."""
    from arkfast.train.models import LoadedStudent
    from arkfast.train.parallel import Parallel

    fields = {
        "stage": "sft",
        "student_model": world / "student",
        "train_data": world / "train.jsonl",
        "output_dir": tmp_path,
        "device": "cpu",
    }
    fitting = LoadedStudent(TrainConfig(**fields), Parallel("cpu"), sharded=False)
    with pytest.raises(
        InputError, match=r"--max_audio_seconds \S+ and --asr_opd_max_new_tokens \d+ take \d+ positions, the model has 4096"
    ):
        LoadedStudent(TrainConfig(**fields, **{flag: 4096}), Parallel("cpu"), sharded=False)
    assert fitting.model.config.max_position_embeddings == 4096
