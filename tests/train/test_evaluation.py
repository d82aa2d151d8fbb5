"""WER during training: who reads the dev set's audio, what is kept of it, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from arkfast import audio
from arkfast.audio import LogMel
from arkfast.data import pool
from arkfast.records import InputError
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav
from arkfast.train.config import TrainConfig
from arkfast.train.evaluation import DevSet
from arkfast.train.feed import read_rows
from arkfast.train.parallel import Parallel
from arkfast.train.trainer import Interrupted, Trainer

CLIPS = 7


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A checkpoint, a manifest of two clips to train on and one of seven to measure on."""
    root = tmp_path / "world"
    tiny_checkpoint(root / "student", seed=1)
    manifests: dict[str, list[dict[str, Any]]] = {"train": [], "dev": []}
    for name, count in (("train", 2), ("dev", CLIPS)):
        for i in range(count):
            write_wav(root / f"{name}{i}.wav", synthetic_speech(0.4 + 0.1 * i, seed=i))
            manifests[name].append({"audio": f"{name}{i}.wav", "text": "one two three"[: 3 + i], "id": f"clip{i}", "language": "en"})
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in manifests[name]))
    return root


def config(world: Path, **overrides: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "stage": "sft", "student_model": world / "student", "train_data": world / "train.jsonl", "eval_data": world / "dev.jsonl",
        "output_dir": world / "run", "max_steps": 3, "per_device_eval_batch_size": 3, "asr_opd_max_new_tokens": 8, "gates": "off",
        "model_dtype": "float32", "num_threads": 1, "device": "cpu",
    }  # fmt: skip
    return TrainConfig(**{**values, **overrides})


@pytest.fixture
def read_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that this process decodes from now on."""
    files: list[str] = []
    read = audio.read

    def noted(source: Any, **options: Any) -> Any:
        files.append(Path(source).name)
        return read(source, **options)

    monkeypatch.setattr(audio, "read", noted)
    return files


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The feature workers that start from now on."""
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(pool.subprocess, "Popen", Noted)
    return started


def measured(trainer: Trainer) -> dict[str, Any]:
    """What an evaluation says, but for the time it took."""
    assert trainer._dev is not None
    record = trainer._dev.measure(trainer.model, trainer.engine.allowed)
    return {name: value for name, value in record.items() if name != "eval_seconds"}


def test_workers_read_the_audio_and_change_no_figure(world, read_here, workers):
    here = measured(Trainer(config(world, dataloader_num_workers=0)))
    assert sorted(read_here) == [f"dev{i}.wav" for i in range(CLIPS)]
    assert not workers
    read_here.clear()
    elsewhere = measured(Trainer(config(world, dataloader_num_workers=2, output_dir=world / "another run")))
    assert read_here == []
    assert len(workers) == 2
    assert all(worker.poll() is not None for worker in workers), "they end with the evaluation"
    assert elsewhere == here
    assert here["eval_utterances"] == CLIPS
    assert len({sample["pred_text"] for sample in here["samples"]}) > 1, "the clips' features matter"


@pytest.mark.parametrize("count", [0, 2])
def test_a_second_evaluation_takes_what_was_kept(world, workers, count):
    trainer = Trainer(config(world, dataloader_num_workers=count, feature_cache_mb=8))
    first = measured(trainer)
    for path in world.glob("dev*.wav"):
        path.unlink()
    workers.clear()
    assert measured(trainer) == first
    assert not workers, "there is nothing for them to do"


def test_the_cache_has_half_of_the_budget(world, read_here):
    """Features of 0.4 s are 20 kB, so that a mebibyte for evaluation would hold all of these clips and half of one some of them."""
    rows = (world / "dev.jsonl").read_text().splitlines()
    many = [json.dumps({**json.loads(row), "id": f"{i}-{turn}"}) + "\n" for turn in range(7) for i, row in enumerate(rows)]
    (world / "dev.jsonl").write_text("".join(many))
    trainer = Trainer(config(world, dataloader_num_workers=0, feature_cache_mb=2))
    first = measured(trainer)
    assert len(read_here) == len(many)
    read_here.clear()
    assert measured(trainer) == first
    size = 128 * 4 * 100  # bytes of a second
    assert sum(size * (0.4 + 0.1 * i) for i in range(CLIPS)) * 7 > 1 << 20
    assert 0 < len(read_here) < len(many)


@pytest.mark.parametrize("count", [0, 2])
def test_a_bad_clip_is_an_error_that_names_its_row_and_workers_end(world, workers, count):
    trainer = Trainer(config(world, dataloader_num_workers=count, on_bad_audio="skip:1", eval_at_start=True))
    (world / "dev4.wav").write_bytes(b"no audio")
    with pytest.raises(InputError, match=r"dev\.jsonl:5: .*dev4\.wav: "):
        trainer.run()
    assert bool(workers) == bool(count)
    assert all(worker.poll() is not None for worker in workers)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_workers_end_with_an_evaluation_that_is_broken_off(world, workers, monkeypatch, error):
    def broken(*_arguments: Any, **_options: Any) -> Any:
        raise error

    monkeypatch.setattr("arkfast.train.evaluation.Engine.rollout", broken)
    trainer = Trainer(config(world, dataloader_num_workers=2))
    with pytest.raises(error) as raised:
        measured(trainer)
    assert workers
    assert all(worker.poll() is not None for worker in workers), "while the error still holds on to its frames"
    assert raised.traceback


def test_workers_end_with_a_run_that_is_told_to_stop_while_it_measures(world, workers):
    trainer = Trainer(config(world, dataloader_num_workers=2, eval_at_start=True, save_freq=1))
    assert trainer._dev is not None
    batches = trainer._dev.batches

    def signalled() -> Any:
        for batch in batches():
            os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    trainer._dev.batches = signalled  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match="step 0 of 3 saved"):
        trainer.run()
    assert (world / "run" / "metrics.jsonl").read_text() == "", "what was measured by then is no figure"
    assert workers
    assert all(worker.poll() is not None for worker in workers)
    Trainer(config(world, eval_at_start=True, save_freq=1, resume_from_checkpoint="auto")).run()
    rows = [json.loads(line) for line in (world / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], "eval_wer" in row) for row in rows] == [(0, True), (1, False), (2, False), (3, False), (3, True)]


@pytest.mark.parametrize("rank", [0, 1, 8])
def test_a_rank_reads_its_own_rows_alone(world, read_here, rank):
    """Of nine ranks the last two have none."""
    settings, parallel = config(world, dataloader_num_workers=0), Parallel("cpu")
    rows = read_rows(settings, parallel).dev
    trainer = Trainer(settings)
    parallel.rank, parallel.world = rank, 9 if rank == 8 else 3
    learner = trainer.learner
    dev = DevSet(rows, settings, parallel, LogMel(128), learner.task, learner.interface)
    found = [name for batch in dev.batches() for name in batch.ids]
    assert found == [f"clip{i}" for i in range(CLIPS)][rank :: parallel.world]
    assert read_here == [f"dev{name.removeprefix('clip')}.wav" for name in found]


# What is best.


def log(world: Path) -> list[dict[str, Any]]:
    def none(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=none) for line in (world / "run" / "metrics.jsonl").read_text().splitlines()]


def test_a_rate_that_does_not_exist_is_null_and_never_best(world):
    rows = [json.loads(line) for line in (world / "dev.jsonl").read_text().splitlines()]
    (world / "empty.jsonl").write_text("".join(json.dumps({**row, "text": ""}) + "\n" for row in rows))
    options: dict[str, Any] = {"dataloader_num_workers": 0, "eval_freq": 1, "save_freq": 1}
    state = Trainer(config(world, eval_data=world / "empty.jsonl", **options)).run()
    assert [(row["eval_wer"], row["best"]) for row in log(world) if "eval_wer" in row] == [(None, False)] * 3
    assert (state.best_wer, state.best_step) == (None, None)
    assert not (world / "run" / "best").exists()
    saved = world / "run" / "checkpoints" / "global_step_3" / "trainer_state.json"
    before = json.loads(saved.read_text())
    saved.write_text(json.dumps({**before, "best_wer": float("nan"), "best_step": 1}))  # as an earlier version kept it
    state = Trainer(config(world, max_steps=4, resume_from_checkpoint="auto", **options)).run()
    assert state.best_step == 4
    assert (world / "run" / "best").is_dir()


def test_rates_of_different_dev_sets_are_not_compared(world, monkeypatch, capsys):
    rates = iter([10.0, 60.0, 50.0, 55.0])
    monkeypatch.setattr(DevSet, "_rate", lambda *_: (next(rates), 0))
    options: dict[str, Any] = {"dataloader_num_workers": 0, "save_freq": 1, "eval_freq": 1}
    first = Trainer(config(world, max_steps=1, **options)).run()
    assert (first.best_wer, first.best_step) == (10.0, 1)
    rows = (world / "dev.jsonl").read_text().splitlines(keepends=True)
    (world / "other.jsonl").write_text("".join(rows[:4]))
    state = Trainer(config(world, max_steps=4, eval_data=world / "other.jsonl", resume_from_checkpoint="auto", **options)).run()
    assert (state.best_wer, state.best_step) == (50.0, 3)
    evaluated = [row for row in log(world) if "eval_wer" in row]
    assert [row["best"] for row in evaluated] == [True, True, True, False]
    assert len({row["eval_set"] for row in evaluated}) == 2
    assert "--eval_data: other rows than the lowest WER was measured on" in capsys.readouterr().err


def test_a_loss_that_is_no_number_is_null_in_the_log(world, monkeypatch):
    from dataclasses import replace

    trainer = Trainer(config(world, eval_data=None, dataloader_num_workers=0, max_steps=2, calibration_batches=0))
    loss = trainer._loss
    monkeypatch.setattr(trainer, "_loss", lambda batch: replace(whole := loss(batch), total=whole.total * float("nan")))
    trainer.run()
    assert [(row["loss"], row["grad_norm"], row["skipped"]) for row in log(world)] == [(None, None, True)] * 2
