"""The gates of on-policy distillation: what chance explains, rollouts that run away, and starts that cannot work, each with its cause."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from arkfast import cli
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav
from arkfast.train.checkpoints.run_folder import load_state
from arkfast.train.config import TrainConfig
from arkfast.train.gates import START_CHANCE, Watch, exceeds
from arkfast.train.preflight import refusals
from arkfast.train.trainer import Trainer, TrainingStopped

TEXTS = ("one two", "three", "four five six", "seven eight", "nine", "zero one")


def at_least(seen: int, of: int, share: float) -> float:
    return sum(math.comb(of, k) * share**k * (1 - share) ** (of - k) for k in range(seen, of + 1))


@pytest.mark.parametrize("of", [1, 2, 7, 40, 300])
@pytest.mark.parametrize("limit", [0.01, 0.05, 0.3])
def test_a_share_is_over_its_limit_where_chance_alone_would_hardly_show_it(of: int, limit: float) -> None:
    for seen in range(of + 1):
        odds = at_least(seen, of, limit)
        if abs(odds - START_CHANCE) > 1e-9:
            assert exceeds(seen, of, limit) == (odds < START_CHANCE and seen > limit * of)
    assert not exceeds(0, of, 0.0)
    assert exceeds(1, of, 0.0)
    assert not exceeds(of, of, 1.0)


def watch(**options: Any) -> TrainConfig:
    plain: dict[str, Any] = {"student_model": Path("s"), "teacher_model": Path("t"), "train_data": Path("d"), "output_dir": Path("o")}
    return TrainConfig(**{**plain, "gate_window": 6, **options})


def line(step: int, cut: int, rollouts: int = 16) -> dict[str, Any]:
    return {"step": step, "generated_stopped": 1.0 - cut / rollouts, "generated_rows": rollouts}


def first(counts: list[int], config: TrainConfig, cut_references: float = 0.0) -> tuple[int, str] | None:
    looks = Watch(config, cut_references=cut_references)
    said = [(step, text) for step, cut in enumerate(counts, 1) if (text := looks.saw(line(step, cut)))]
    assert len(said) <= 1 or "warn" in config.gates, "said once while it lasts"
    return said[0] if said else None


def test_rollouts_that_do_not_end_are_named_with_step_and_share() -> None:
    step, text = first([0, 1, 0, 2, 5, 6], watch()) or (0, "")
    assert step == 6
    assert text.startswith(
        "step 6: 14.6 % of the last 96 rollouts did not end within --asr_opd_max_new_tokens 256 (--gate_unfinished 0.05)"
    )
    assert first([1] * 30, watch(gate_unfinished=0.1)) is None
    assert first([16] * 9, watch(gates="off")) is None
    assert first([16] * 9, watch(stage="td")) is None
    assert first([16] * 9, watch(gate_unfinished=0.0)) is None
    assert first([4] * 9, watch(), cut_references=0.25) is None, "references that long must be cut"


def test_unfinished_rollouts_that_keep_growing_stop_before_their_share_is_over_the_limit() -> None:
    config = watch(gate_unfinished=0.5)
    step, text = first([0, 0, 1, 1, 4, 9], config) or (0, "")
    assert step == 6
    assert "keep growing: 0 %, 6.25 %, 40.6 % in the thirds of the last 6 measured steps" in text
    assert first([0, 0, 9, 9, 4, 4], config) is None, "that falls again"
    assert first([0, 0, 1, 0, 1, 1], config) is None, "that is chance"


def test_a_watch_that_is_taken_up_again_judges_as_one_that_was_not_stopped() -> None:
    counts = [0, 1, 0, 2, 1, 0, 3, 6, 7]
    whole = Watch(watch(), cut_references=0.0)
    said = [whole.saw(line(step, cut)) for step, cut in enumerate(counts, 1)]
    for stop in range(len(counts)):
        before = Watch(watch(), cut_references=0.0)
        for step, cut in enumerate(counts[:stop], 1):
            before.saw(line(step, cut))
        stored = json.loads(json.dumps(before.window))
        after = Watch(watch(), cut_references=0.0, window=stored)
        heard = [after.saw(line(step, cut)) for step, cut in enumerate(counts[stop:], stop + 1)]
        assert next(filter(None, heard), None) == next(filter(None, said[stop:]), None) or any(said[:stop])
        assert after.window == whole.window


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that was taught six clips by heart, and a manifest of them; the teacher is a student that a teacher knows."""
    root = tmp_path_factory.mktemp("world")
    tiny_checkpoint(root / "start", seed=2)
    rows = []
    for i, text in enumerate(TEXTS):
        write_wav(root / f"{i}.wav", synthetic_speech(0.5 + 0.13 * i, seed=i))
        rows.append({"audio": f"{i}.wav", "text": text, "id": f"clip{i}"})
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    taught = config(root, root / "taught", stage="sft", student_model=root / "start", teacher_model=None, max_steps=120, learning_rate=5e-3)
    Trainer(taught).run()
    shutil.copytree(root / "taught" / "last", root / "teacher")
    return root


def config(world: Path, out: Path, **options: Any) -> TrainConfig:
    plain: dict[str, Any] = {
        "stage": "opd", "student_model": world / "teacher", "teacher_model": world / "teacher", "train_data": world / "train.jsonl",
        "output_dir": out, "per_device_train_batch_size": 2, "max_steps": 4, "learning_rate": 1e-4, "opd_top_k": 8, "num_threads": 1,
        "asr_opd_max_new_tokens": 24, "dataloader_num_workers": 0, "seed": 3, "model_dtype": "float32", "device": "cpu",
        "calibration_batches": 3,
    }  # fmt: skip
    return TrainConfig(**{**plain, **options})


def test_a_student_that_its_teacher_knows_passes_every_gate(world: Path, tmp_path: Path) -> None:
    state = Trainer(config(world, tmp_path / "run", eval_data=world / "train.jsonl")).run()
    assert state.step == 4
    assert state.unfinished == ((0, 2),) * 4
    rows = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["generated_rows"] for row in rows if "loss" in row] == [2] * 4


def without_gates(trainer: Trainer) -> list[tuple[float, float]]:
    trainer.run()
    rows = [json.loads(text) for text in (trainer.config.output_dir / "metrics.jsonl").read_text().splitlines()]
    return [(row["loss"], row["grad_norm"]) for row in rows if "loss" in row]


def test_gates_leave_losses_as_they_are(world: Path, tmp_path: Path) -> None:
    runs = [without_gates(Trainer(config(world, tmp_path / gates, gates=gates))) for gates in ("strict", "warn", "off")]
    assert runs[0] == runs[1] == runs[2]


def silent(world: Path, here: Path) -> dict[str, Any]:
    write_wav(here / "none.wav", np.zeros(16_000, np.float32))
    rows = [{"audio": "none.wav", "text": "one", "id": f"s{i}", "begin_time": -1, "end_time": -1} for i in range(6)]
    (here / "silent.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"train_data": here / "silent.jsonl"}


def wrong_template(world: Path, here: Path) -> dict[str, Any]:
    shutil.copytree(world / "teacher", here / "student")
    file = here / "student" / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|begin_of_audio|>", "<|user|>"))
    return {"student_model": here / "student"}


def permuted(world: Path, here: Path) -> dict[str, Any]:
    """The same tokens at other ids, the special ones as they were: in both checkpoints, so that they agree with each other."""
    shutil.copytree(world / "teacher", here / "student")
    file = here / "student" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    special = {token["id"] for token in tokenizer["added_tokens"]}
    vocab = {token: i for token, i in tokenizer["model"]["vocab"].items() if i not in special}
    tokenizer["model"]["vocab"] |= dict(zip(vocab, reversed(vocab.values()), strict=True))
    file.write_text(json.dumps(tokenizer))
    return {"student_model": here / "student", "teacher_model": here / "student"}


@pytest.mark.parametrize("worse", [True, False])
def test_a_decoder_is_held_against_the_head_that_it_was_trained_with(world: Path, tmp_path: Path, worse: bool) -> None:
    out = tmp_path / "sft"
    options: dict[str, Any] = {"stage": "sft", "teacher_model": None, "ctc_weight": 1.0, "learning_rate": 0.01, "save_freq": 200}
    Trainer(config(world, out, max_steps=200, student_model=world / "start", **options)).run()
    student = out / "checkpoints" / "global_step_200"
    if worse:
        weights = load_file(student / "model.safetensors")
        for name in [name for name in weights if "o_proj" in name or "down_proj" in name]:
            weights[name] = torch.zeros_like(weights[name])
        save_file(weights, student / "model.safetensors", metadata={"format": "pt"})
    trainer = Trainer(
        config(world, tmp_path / "run", student_model=student, eval_data=world / "train.jsonl", gate_dev_wer=1000, max_steps=1)
    )
    start = trainer._look.look([], {})
    assert start.ctc_wer is not None
    assert start.ctc_wer <= 20, "it has learnt six clips"
    assert start.dev_wer is not None
    assert (start.dev_wer > 50) == worse
    measured = {"generated_rows": 1, "generated_stopped": 1.0, "generated_nonempty": 1.0, "opd_overlap_mean": 8.0}
    reasons = [text for text in refusals(trainer.config, replace(start, measured=measured)) if "CTC head" in text]
    assert len(reasons) == worse


def random_student(world: Path, here: Path) -> dict[str, Any]:
    return {"student_model": tiny_checkpoint(here / "random", seed=7)}


@pytest.mark.parametrize(
    ("broken", "cause"),
    [
        (silent, "silent manifest: 6 of the 6 clips looked at are digital silence"),
        (wrong_template, "wrong prompt: its chat_template.jinja makes '<|user|><|user|><|audio|>"),
        (permuted, "the student holds the references for less likely than chance"),
        (random_student, "rollouts do not end within --asr_opd_max_new_tokens 24"),
    ],
)
def test_a_start_that_cannot_work_is_refused_by_its_cause(
    world: Path, tmp_path: Path, broken: Callable[[Path, Path], dict[str, Any]], cause: str
) -> None:
    options = broken(world, tmp_path)
    with pytest.raises(TrainingStopped) as raised:
        Trainer(config(world, tmp_path / "run", **options)).run()
    assert str(raised.value).startswith("preflight: ")
    assert cause in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_student_that_only_ends_is_sent_to_a_cheaper_stage(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(config(world, tmp_path / "run"))
    with torch.no_grad():  # the head sees one direction, in which the end token alone lies far out
        end = trainer.learner.interface.end_id
        trainer.model.model.norm.weight.zero_()
        trainer.model.model.norm.weight[0] = 1.0
        table = trainer.model.get_input_embeddings().weight
        table[:, 0] = 0.0
        table[end, 0] = 50.0
        for layer in trainer.model.model.layers:
            for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
                matrix.weight[0].zero_()
        prompt = trainer.learner.prompt.suffix[-1]
        table[prompt, 0] = 50.0
        table[end, 0] = 100.0
    with pytest.raises(TrainingStopped, match="writes nothing but the end token in 6 of 6 rollouts; run --stage sft or --stage td first"):
        trainer.run()


def test_a_bad_start_is_said_and_gone_on_with_where_gates_warn(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {**random_student(world, tmp_path), "eval_data": world / "train.jsonl", "gates": "warn"}
    assert Trainer(config(world, tmp_path / "run", max_steps=2, **options)).run().step == 2
    said = [text for text in capsys.readouterr().err.splitlines() if text.startswith("warning: preflight: ")]
    assert any("rollouts do not end" in text for text in said)
    assert any("the student's WER on --eval_data is" in text for text in said)


def runs_away(trainer: Trainer, after: int) -> None:
    """From step ``after`` on, no rollout of the trainer's record has ended."""
    record = trainer._recorder.record

    def worse(state: Any, *rest: Any, **more: Any) -> dict[str, Any]:
        found = record(state, *rest, **more)
        return {**found, "generated_stopped": 0.0} if state.step > after else found

    trainer._recorder.record = worse  # type: ignore[method-assign]


def test_a_run_whose_rollouts_run_away_stops_with_its_last_good_checkpoint(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    trainer = Trainer(config(world, out, max_steps=40, save_freq=2, gate_window=10, max_ckpt_to_keep=9))
    runs_away(trainer, after=5)
    with pytest.raises(TrainingStopped) as raised:
        trainer.run()
    rows = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    assert f"the last good checkpoint is {out / 'checkpoints' / 'global_step_4'}" in str(raised.value)
    step = int(str(raised.value).split(":")[0].removeprefix("step "))
    assert step == 8, "4 of 14 may be chance, 6 of 16 are none"
    assert rows[-1]["step"] == 8
    assert not (out / "checkpoints" / "global_step_8").exists(), "a resume goes on from what was good"
    assert load_state(out / "checkpoints" / "global_step_4").unfinished == ((0, 2),) * 4


def test_a_run_without_a_checkpoint_saves_what_it_has(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    trainer = Trainer(config(world, out, max_steps=40))
    runs_away(trainer, after=0)
    with pytest.raises(TrainingStopped, match=r"no checkpoint is of before, so step \d is saved as it is"):
        trainer.run()
    assert len(list((out / "checkpoints").iterdir())) == 1


def test_the_window_goes_on_after_a_resume(world: Path, tmp_path: Path, halted: Any) -> None:
    options: dict[str, Any] = {"max_steps": 6, "save_freq": 3, "gate_window": 4}
    whole = Trainer(config(world, tmp_path / "whole", **options)).run()
    halted(Trainer(config(world, tmp_path / "cut", **options)), 4)
    assert Trainer(config(world, tmp_path / "cut", resume_from_checkpoint="latest", **options)).run() == whole
    assert len(whole.unfinished) == 4


def test_training_that_is_refused_is_one_line_and_exit_code_1(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    student = tiny_checkpoint(tmp_path / "random", seed=7)
    words = ["--student_model", student, "--teacher_model", world / "teacher", "--train_data", world / "train.jsonl", "--output_dir",
             tmp_path / "run", "--per_device_train_batch_size", 2, "--calibration_batches", 3, "--opd_top_k", 8, "--max_steps", 2,
             "--asr_opd_max_new_tokens", 24, "--dataloader_num_workers", 0, "--device", "cpu"]  # fmt: skip
    assert cli.main(["train", *map(str, words)]) == 1
    said = [text for text in capfd.readouterr().err.splitlines() if "error" in text]
    assert len(said) == 1
    assert said[0].startswith("arkfast train: error: preflight: ")
