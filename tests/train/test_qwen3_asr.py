"""Training under a Qwen3-ASR teacher: the command in this process, and the original's own command line on two."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from arkfast.distill.teachers.qwen3_asr import Qwen3AsrTeacher
from arkfast.models.arkasr.load import load_model
from arkfast.testing import CHAIN, agreeing_models, synthetic_speech, tiny_checkpoint, tiny_qwen3_asr, write_wav
from arkfast.train.command import main

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("en", "hr", "German", "zh")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a teacher of each layout and four clips in four languages, one of which the teacher does not know."""
    root = tmp_path_factory.mktemp("world")
    tiny_checkpoint(root / "student", seed=1)
    tiny_qwen3_asr(root / "teacher", seed=3)
    tiny_qwen3_asr(root / "first", seed=3, layout="first")
    rows = []
    for i, language in enumerate(LANGUAGES):
        write_wav(root / f"{i}.wav", synthetic_speech(0.4 + 0.3 * i, seed=i))
        rows.append(json.dumps({"audio": f"{i}.wav", "text": "one two", "task": "asr", "id": f"clip{i}", "language": language}) + "\n")
    (root / "train.jsonl").write_text("".join(rows))
    return root


def flags(world: Path, output: Path, teacher: str = "teacher", **more: Any) -> list[str]:
    given = {
        "student_model": world / "student", "teacher_model": world / teacher, "train_data": world / "train.jsonl", "output_dir": output,
        "per_device_train_batch_size": 2, "opd_top_k": 8, "asr_opd_max_new_tokens": 6, "learning_rate": 1e-2, "gates": "off",
        "dataloader_num_workers": 1, "num_threads": 1, "device": "cpu", **more,
    }  # fmt: skip
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_the_command_trains_under_it_with_features_from_workers(world, tmp_path, monkeypatch, capfd):
    inside: list[int] = []
    scored = Qwen3AsrTeacher.score

    def watched(self: Qwen3AsrTeacher, batch: Any, *args: Any) -> Any:
        inside.append(int(batch.teacher_inputs["mel"].shapes[:, 1].min()))
        return scored(self, batch, *args)

    monkeypatch.setattr(Qwen3AsrTeacher, "score", watched)
    words = flags(world, tmp_path, teacher_backend="qwen3_asr_teacher_forcing", qwen3_asr_code_path="/code", total_epochs=6)
    assert main(words) == 0
    found = lines(tmp_path)
    assert len(found) == 12
    told = [step["teacher_language_counts"] for step in found]
    assert {name for counts in told for name in counts} == {"English", "German", "Chinese", "skipped: Croatian"}
    assert all(sum(counts.values()) == 2 for counts in told)
    assert sum(counts.get("skipped: Croatian", 0) for counts in told) == 6
    assert {step["teacher_backend"] for step in found} == {"qwen3_asr_teacher_forcing"}
    losses = [step["loss"] for step in found]
    assert sum(losses[-4:]) < sum(losses[:4])
    assert min(inside) == 50, "the shortest clip, 0.4 s, is heard as half a second"
    err = capfd.readouterr().err
    assert err.count("--qwen3_asr_code_path /code: has no effect") == 1
    load_model(tmp_path / "last")


@pytest.mark.parametrize("change", [{"teacher": "first"}, {"teacher_full_attention": "True"}, {"unsupported_language": "none"}])
def test_what_is_chosen_reaches_the_teacher(world, tmp_path, monkeypatch, change):
    seen: list[Qwen3AsrTeacher] = []
    begun = Qwen3AsrTeacher.begin
    monkeypatch.setattr(Qwen3AsrTeacher, "begin", lambda self, batch: (seen.append(self), begun(self, batch))[1])
    assert main(flags(world, tmp_path, teacher_backend="qwen3_asr_transformers", max_steps=2, **change)) == 0
    assert seen[0].model.full_attention is ("teacher_full_attention" in change)
    counts = [step["teacher_language_counts"] for step in lines(tmp_path)]
    left_out = "skipped: Croatian" if "unsupported_language" not in change else "detected"
    assert any(left_out in told for told in counts)


@pytest.mark.parametrize("stage", ["opd", "td"])
def test_references_are_learnt_where_the_language_is_not_known_to_it(world, tmp_path, stage):
    words = flags(world, tmp_path, teacher_backend="qwen3_asr_transformers", unsupported_language="sft", stage=stage, max_steps=4)
    assert main(words) == 0
    found = lines(tmp_path)
    learnt = ["reference: Croatian" in step["teacher_language_counts"] for step in found]
    assert learnt.count(True) == learnt.count(False) == 2
    if stage == "opd":
        assert ["asr_loss" in step for step in found] == learnt, "a step without such a row has no such loss"
        assert all(step["asr_loss"] > 0 for step in found if "asr_loss" in step)


def test_its_transcripts_are_learnt_in_stage_td(world, tmp_path):
    assert main(flags(world, tmp_path, teacher_backend="qwen3_asr_teacher_forcing", stage="td", total_epochs=4)) == 0
    found = lines(tmp_path)
    assert sum(step["loss"] for step in found[-2:]) < sum(step["loss"] for step in found[:2])
    assert any("skipped: Croatian" in step["teacher_language_counts"] for step in found)


def test_a_teacher_that_does_not_fit_is_one_line(world, tmp_path, capfd):
    from arkfast.cli import main as arkfast

    for backend, teacher, message in (
        ("qwen3_asr_teacher_forcing", "student", "model_type is 'arkasr', expected 'qwen3_asr'"),
        ("arkasr", "teacher", "model_type is 'qwen3_asr', and --teacher_backend arkasr runs 'arkasr' alone; give --teacher_backend"),
    ):
        words = flags(world, tmp_path, teacher, teacher_backend=backend, max_steps=1)
        with pytest.raises(SystemExit) as ended:
            raise SystemExit(arkfast(["train", *words]))
        err = capfd.readouterr().err
        assert ended.value.code == 2
        assert message in err
        assert "Traceback" not in err


@pytest.mark.slow
def test_the_originals_own_command_line_trains_on_two_processes(world, tmp_path, free_port):
    """Every flag is the original's, under its path; student and teacher agree as trained ones do, so that the gates let them begin."""
    agreeing_models(tmp_path)
    rows = [json.loads(row) for row in (world / "train.jsonl").read_text().splitlines()]
    manifest = tmp_path / "train.jsonl"
    manifest.write_text("".join(json.dumps({**row, "audio": str(world / row["audio"]), "text": CHAIN}) + "\n" for row in rows))
    given = {
        "student_model": tmp_path / "student", "teacher_model": tmp_path / "teacher", "qwen3_asr_code_path": "/somewhere/qwen_asr",
        "teacher_backend": "qwen3_asr_teacher_forcing", "train_data": manifest, "output_dir": tmp_path / "run",
        "per_device_train_batch_size": 1, "dataloader_num_workers": 1, "max_steps": 3, "total_epochs": 2, "learning_rate": "1e-4",
        "lr_scheduler_type": "cosine", "warmup_steps": 1, "calibrate_only": "False", "opd_loss_weight": "1.0", "opd_top_k": 8,
        "asr_opd_max_new_tokens": 8, "max_audio_seconds": 30, "sampling_rate": 16000, "save_freq": 2, "model_dtype": "float32",
        "teacher_attn_implementation": "sdpa", "student_attn_implementation": "sdpa",
    }  # fmt: skip
    script = ROOT / "scripts" / "train" / "train_ark_asr_opd_fsdp2_resume.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port), str(script)]
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*launch, *words], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"--qwen3_asr_code_path /somewhere/qwen_asr: has no effect", done.stderr)) == 1
    found = lines(tmp_path / "run")
    assert [step["step"] for step in found] == [1, 2, 3]
    assert all(step["loss"] > 0 and step["opd_valid_topk_mean"] >= 2 for step in found)
    assert all(step["generated_stopped"] == 1 and step["generated_tokens_mean"] == len(CHAIN) + 1 for step in found)
    assert all(sum(step["teacher_language_counts"].values()) == 2 for step in found), "the rows of both processes"
    assert (tmp_path / "run" / "checkpoints" / "global_step_2").is_dir()
    before, after = load_model(tmp_path / "student"), load_model(tmp_path / "run" / "last")
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)
