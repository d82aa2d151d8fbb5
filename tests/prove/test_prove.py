"""``arkfast prove`` on tiny pairs: what is sound passes, and what is not fails by the name of the comparison that found it."""

from __future__ import annotations

import json
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from arkfast.cli import main
from arkfast.models.arkasr.family import ArkasrFamily
from arkfast.models.arkasr.load import load_model
from arkfast.models.arkasr.outside import load as arkasr_outside
from arkfast.models.arkasr.prompt import Prompt
from arkfast.prove import run, teacher_checks, training
from arkfast.prove.original_loss import union_loss
from arkfast.records import Utterance
from arkfast.testing import perturb, synthetic_speech, tiny_checkpoint, tiny_qwen3_asr, write_wav

TEXTS = ("one two", "three", "four five six", "seven eight", "nine", "zero one")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, teachers of three kinds, and a manifest of six clips."""
    root = tmp_path_factory.mktemp("world")
    tiny_checkpoint(root / "student", seed=1)
    tiny_checkpoint(root / "teacher", seed=2, hidden_size=64, num_attention_heads=4)
    tiny_checkpoint(root / "other_words", seed=2, vocab_size=360)
    for name in ("student", "teacher"):  # fresh biases and norms are zeros and ones, which would hide one that is misplaced
        perturb(load_model(root / name)).save_pretrained(root / name)
    tiny_qwen3_asr(root / "qwen", seed=5)
    tiny_qwen3_asr(root / "qwen_first", seed=5, layout="first")
    rows = []
    for i, text in enumerate(TEXTS):
        write_wav(root / f"{i}.wav", synthetic_speech(0.45 + 0.31 * i, seed=i))
        rows.append(json.dumps({"audio": f"{i}.wav", "text": text, "id": f"clip{i}", "language": "en"}) + "\n")
    (root / "train.jsonl").write_text("".join(rows))
    return root


def prove(world: Path, out: Path, **flags: Any) -> int:
    values = {"student_model": world / "student", "teacher_model": world / "teacher", "train_data": world / "train.jsonl",
              "output_dir": out, "steps": 0, "max_new_tokens": 10, "gates": "off", "clips": 2, "device": "cpu", **flags}  # fmt: skip
    return main(["prove", *(word for name, value in values.items() for word in (f"--{name}", str(value)))])


def report(out: Path) -> dict[str, Any]:
    def strict(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads((out / "report.json").read_text(), parse_constant=strict)


def verdicts(out: Path) -> dict[str, str]:
    return {line["name"]: line["verdict"] for line in report(out)["comparisons"]}


def failed(out: Path) -> list[str]:
    return [name for name, verdict in verdicts(out).items() if verdict == "FAIL"]


def test_a_sound_pair_passes_and_trains(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert prove(world, out, clips=3, steps=3, eval_data=world / "train.jsonl", max_wer_rise=1000) == 0
    found = report(out)
    assert len(found["comparisons"]) == 14
    assert set(verdicts(out).values()) == {"pass"}
    tokens = next(line for line in found["comparisons"] if line["name"].startswith("greedy"))
    assert int(tokens["detail"].split(" distinct")[0].split()[-1]) >= 10, "a model that repeats one token would prove nothing"
    assert len(found["losses"]) == 3
    assert [point["step"] for point in found["wer"]] == [0, 3]
    assert [part["name"] for part in found["parts"]][-1] == "3 steps, WER before and after"
    assert all(part["seconds"] > 0 and part["peak_mb"] > 0 for part in found["parts"])
    assert all(line["reason"] for line in found["comparisons"]), "every limit says why"
    shown = capsys.readouterr().out
    assert "PASS: 14 comparisons pass" in shown
    page = (out / "report.html").read_text()
    addresses: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag != "script"
            addresses.extend(value or "" for name, value in attrs if name in ("src", "href"))

    Links().feed(page)
    assert addresses == []
    assert all(name in page for name in ("greedy tokens", ">PASS <", "14 of 14 comparisons pass", "Time and memory"))


@pytest.mark.parametrize("teacher", ["qwen", "qwen_first"])
def test_the_originals_own_teacher_passes_in_both_layouts(world: Path, tmp_path: Path, teacher: str) -> None:
    out = tmp_path / "out"
    assert prove(world, out, teacher_model=world / teacher, teacher_backend="qwen3_asr_teacher_forcing") == 0
    found = verdicts(out)
    assert {name for name, verdict in found.items() if verdict != "pass"} == {training.STEPS, training.WER}, "with --steps 0"
    assert found[training.STEPS] == "not compared"


def test_clips_whose_language_nobody_says_are_left_out_and_said(world: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    for untold in (1, 2):
        lines = []
        for i, row in enumerate(rows[:2]):
            row = {**row, "audio": str(world / row["audio"])}
            lines.append(json.dumps({name: value for name, value in row.items() if i >= untold or name != "language"}) + "\n")
        manifest, out = tmp_path / f"{untold}.jsonl", tmp_path / f"out{untold}"
        manifest.write_text("".join(lines))
        assert prove(world, out, train_data=manifest, teacher_model=world / "qwen", teacher_backend="qwen3_asr_transformers") == 0
        line = next(line for line in report(out)["comparisons"] if line["name"] == teacher_checks.SCORES)
        assert line["verdict"] == verdicts(out)[teacher_checks.CHAIN] == ("pass" if untold == 1 else "not compared")
        assert "10 of 20 positions" in line["detail"] or untold == 2
        assert "neither its language nor its script" in line["detail"]
        assert verdicts(out)[teacher_checks.LOSS] == "pass"


def swap_ids(folder: Path) -> None:
    """Two tokens change places in a tokenizer."""
    file = folder / "tokenizer.json"
    fields = json.loads(file.read_text())
    vocabulary = fields["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    file.write_text(json.dumps(fields))


def test_a_tokenizer_whose_ids_are_swapped_fails_by_its_name(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(world / "student", tmp_path / "student")
    swap_ids(tmp_path / "student")
    out = tmp_path / "out"
    assert prove(world, out, student_model=tmp_path / "student", steps=3) == 1
    assert failed(out) == [teacher_checks.VOCABULARY]
    assert verdicts(out)[training.STEPS] == "not compared"
    shown = capsys.readouterr().out
    assert f"FAIL: {teacher_checks.VOCABULARY}" in shown
    assert "student 'e', teacher 'a'" in shown or "student 'a', teacher 'e'" in shown


def test_a_tokenizer_that_cannot_be_read_fails_by_its_name(world: Path, tmp_path: Path) -> None:
    for which in ("student", "teacher"):
        shutil.copytree(world / which, tmp_path / which)
        (tmp_path / which / "tokenizer.json").write_text('{"model": ')
        out = tmp_path / f"out_{which}"
        assert prove(world, out, **{f"{which}_model": tmp_path / which}) == 1
        assert failed(out) == [f"the {which}'s checkpoint"]
        assert "tokenizer cannot be loaded" in (out / "report.json").read_text()


def test_a_teacher_of_another_vocabulary_fails_by_its_name(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prove(world, out, teacher_model=world / "other_words") == 1
    assert failed(out) == [teacher_checks.VOCABULARY]


def test_layers_that_our_side_confuses_are_found_in_the_encoder(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = ArkasrFamily.load

    def confused(self: ArkasrFamily, folder: Path, **options: Any) -> Any:
        model = load(self, folder, **options)
        if folder.name == "student":
            layers = model.audio_encoder.whisper.layers
            layers[0], layers[1] = layers[1], layers[0]
        return model

    monkeypatch.setattr(ArkasrFamily, "load", confused)
    out = tmp_path / "out"
    assert prove(world, out) == 1
    found = verdicts(out)
    assert "encoder states beside Transformers'" in failed(out)
    assert found[teacher_checks.SCORES] == "pass", "the teacher is what it was"
    assert found["encoder states, batch against one by one"] == "pass", "our side agrees with itself, which proves nothing here"


def test_a_teachers_weight_that_changes_between_the_loads_of_both_sides_is_found(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(world / "teacher", teacher)
    outside = run.find_outside

    def later(folder: Path) -> Any:
        if folder == teacher:
            weights = load_file(folder / "model.safetensors")
            name = "model.layers.1.self_attn.v_proj.weight"
            weights[name] = weights[name].flip(0).contiguous()
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return outside(folder)

    monkeypatch.setattr(run, "find_outside", later)
    out = tmp_path / "out"
    assert prove(world, out, teacher_model=teacher) == 1
    assert failed(out) == [teacher_checks.SCORES, teacher_checks.CHAIN]
    line = next(line for line in report(out)["comparisons"] if line["name"] == teacher_checks.SCORES)
    assert line["found"] > 100 * line["tolerance"]
    assert "furthest apart at position" in line["detail"]


def test_weights_that_are_gone_for_transformers_fail_and_are_no_crash(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(world / "teacher", teacher)
    outside = run.find_outside

    def later(folder: Path) -> Any:
        if folder == teacher:
            weights = load_file(folder / "model.safetensors")
            save_file({name: weight for name, weight in weights.items() if "layers.1.mlp" not in name}, folder / "model.safetensors")
        return outside(folder)

    monkeypatch.setattr(run, "find_outside", later)
    out = tmp_path / "out"
    assert prove(world, out, teacher_model=teacher) == 1
    assert failed(out) == [teacher_checks.SCORES]
    assert verdicts(out)[teacher_checks.CHAIN] == "not compared"


def test_a_prompt_that_our_side_gets_wrong_is_found(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = Prompt.ids
    monkeypatch.setattr(Prompt, "ids", lambda self, frames, utterance=None: [*ids(self, frames, utterance)[:-2], self.suffix[-1]])
    out = tmp_path / "out"
    assert prove(world, out) == 1
    assert {"prompt beside the checkpoint's template", teacher_checks.SCORES} <= set(failed(out))
    line = next(line for line in report(out)["comparisons"] if line["name"].startswith("prompt"))
    assert line["found"] == 2
    assert "ours has" in line["detail"]


def test_a_checkpoints_template_that_is_another_is_found(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "student", tmp_path / "student")
    file = tmp_path / "student" / "chat_template.jinja"
    file.write_text("{{- 'please ' -}}" + file.read_text())
    out = tmp_path / "out"
    assert prove(world, out, student_model=tmp_path / "student") == 1
    assert "prompt beside the checkpoint's template" in failed(out)


def test_a_template_that_cannot_be_used_is_said(world: Path, tmp_path: Path) -> None:
    for i, text in enumerate(("{{ raise_exception('no') }}", "a prompt without audio")):
        student = tmp_path / f"student{i}"
        shutil.copytree(world / "student", student)
        (student / "chat_template.jinja").write_text(text)
        outside = arkasr_outside(student, torch.device("cpu"))
        assert "published layout, since the checkpoint's template" in outside.prompt_from
        assert outside.prompt(synthetic_speech(0.5), Utterance(id="clip", audio=None))


def test_a_loss_that_is_another_is_found(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = teacher_checks.opd_union_kl

    def turned(*args: Any, **options: Any) -> Any:
        return kernel(*args, **options, divergence="reverse_kl")

    monkeypatch.setattr(teacher_checks, "opd_union_kl", turned)
    out = tmp_path / "out"
    assert prove(world, out) == 1
    assert failed(out) == [teacher_checks.LOSS, teacher_checks.MIXED]


def test_features_that_are_others_are_found(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from arkfast.prove import ours

    extract = ours.extract
    monkeypatch.setattr(ours, "extract", lambda *args, **options: extract(*args, **options) + 1e-3)
    out = tmp_path / "out"
    assert prove(world, out) == 1
    assert {"features beside the definition in float64", "Transformers' features beside ours"} <= set(failed(out))


def test_a_start_that_cannot_work_fails_by_the_steps_name(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prove(world, out, steps=3, gates="strict") == 1
    assert failed(out) == [training.STEPS]
    line = next(line for line in report(out)["comparisons"] if line["name"] == training.STEPS)
    assert "preflight" in line["detail"]
    assert verdicts(out)[training.WER] == "not compared"


def test_a_backend_without_a_dense_forward_is_not_compared_and_is_no_pass(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toys_of_proof").mkdir()
    shutil.copy(Path(__file__).parents[1] / "seams" / "toy_teacher.py", tmp_path / "toys_of_proof" / "toy_teacher.py")
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "out"
    assert prove(world, out, teacher_backend="toys_of_proof.toy_teacher") == 0
    found = verdicts(out)
    assert found[teacher_checks.VOCABULARY] == found[teacher_checks.SCORES] == found[teacher_checks.CHAIN] == "not compared"
    assert found[teacher_checks.LOSS] == found[teacher_checks.MIXED] == "pass"
    assert "5 not compared" in report(out)["headline"]
    sys.modules.pop("toys_of_proof.toy_teacher")


def test_wrong_input_is_one_line_and_exit_code_2(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "bad.jsonl").write_text('{"audio": "nowhere.wav", "text": "a"}\n')
    (tmp_path / "silent.jsonl").write_text(json.dumps({"audio": str(world / "0.wav")}) + "\n")
    for out, flags, said in (
        ("full", {}, "is no empty folder"),
        ("a", {"teacher_model": tmp_path / "none"}, "--teacher_model"),
        ("b", {"train_data": tmp_path / "bad.jsonl"}, "bad.jsonl:1"),
        ("c", {"student_model": world / "qwen"}, "model_type is 'qwen3_asr'"),
        ("d", {"eval_data": tmp_path / "silent.jsonl"}, "no text"),
    ):
        capsys.readouterr()
        assert prove(world, tmp_path / out, **flags) == 2
        error = capsys.readouterr().err
        assert said in error
        assert len(error.splitlines()) == 1
        assert not (tmp_path / out / "report.json").exists()


def test_the_original_loss_is_its_description() -> None:
    """Three ids by hand: 1 in both lists, 2 in the student's alone, 3 in the teacher's alone."""
    teacher, student = {1: 2.0, 3: 1.0}, {1: 2.0, 2: 0.5}
    written = {1: 0.3, 2: 0.2, 3: -0.4}
    logits = torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64)
    lse = 4.0
    q = torch.tensor([0.3, 0.2, -0.4], dtype=torch.float64).log_softmax(0)
    for mixed, scores in ((False, logits), (True, logits - torch.tensor([0.0, lse, 0.0], dtype=torch.float64))):
        p = scores.log_softmax(0)
        assert union_loss(teacher, student, written, lse=lse, mixed=mixed) == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-12)
    assert union_loss({1: 2.0}, {1: 2.0, 2: float("-inf")}, written, lse=lse) is None
