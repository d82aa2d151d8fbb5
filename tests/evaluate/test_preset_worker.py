"""The process that evaluates presets: one load for all of them, logs of their own, and answers that nothing can mix with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arkfast.evaluate import preset_worker
from arkfast.evaluate.command import main as evaluate
from arkfast.evaluate.preset_worker import LoadedOnce
from arkfast.infer.command import TranscribeConfig
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A checkpoint and two presets of a clip each."""
    tiny_checkpoint(tmp_path / "model")
    for seed, name in enumerate(("one", "two")):
        write_wav(tmp_path / f"{name}.wav", synthetic_speech(0.5, seed=seed))
        (tmp_path / f"test_{name}.jsonl").write_text(json.dumps({"audio": f"{name}.wav", "text": name, "language": "en"}) + "\n")
    return tmp_path


def flags(world: Path, name: str, *more: str) -> list[str]:
    return [
        *("--input", str(world / f"test_{name}.jsonl"), "--output", str(world / f"{name}.out.jsonl"), "--preset", name),
        *(
            "--summary",
            str(world / f"{name}.json"),
            "--model_path",
            str(world / "model"),
            "--device",
            "cpu",
            "--max_new_tokens",
            "4",
            *more,
        ),
    ]


def test_a_model_that_serves_several_presets_gives_what_each_would_get_alone(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Any] = []
    load_transcriber = preset_worker.load_transcriber
    monkeypatch.setattr(preset_worker, "load_transcriber", lambda *asked: loads.append(asked) or load_transcriber(*asked))
    load, shared, alone = LoadedOnce(), {}, {}
    for name in ("one", "two"):
        assert evaluate(flags(world, name), load=load) == 0
        shared[name] = json.loads((world / f"{name}.json").read_text())
    assert len(loads) == 1
    for name in ("one", "two"):
        assert evaluate(flags(world, name)) == 0
        alone[name] = json.loads((world / f"{name}.json").read_text())
    times = {"processing_seconds", "wall_seconds", "rtfx", "rtfx_end_to_end"}
    for name in ("one", "two"):
        assert {k: v for k, v in shared[name].items() if k not in times} == {k: v for k, v in alone[name].items() if k not in times}
        assert 0 < shared[name]["processing_seconds"] < shared[name]["wall_seconds"], "of this preset alone"


def test_other_flags_or_another_model_are_loaded_anew(world: Path) -> None:
    load = LoadedOnce()

    def config(**changes: Any) -> TranscribeConfig:
        kept: dict[str, Any] = {"input": world / "x", "output": world / "y", "model_path": world / "model", "max_new_tokens": 4}
        return TranscribeConfig(**(kept | {"device": "cpu"} | changes))

    first = load(world / "model", config())
    assert load(world / "model", config(input=world / "z", output=world / "w")) is first
    second = load(world / "model", config(max_new_tokens=5))
    assert second is not first
    assert load(world / "model", config(max_new_tokens=5)) is second


@pytest.mark.slow
def test_the_process_answers_each_job_and_ends_after_one_that_it_could_not_do(world: Path) -> None:
    jobs = [flags(world, "one", "--normalizer", "none"), flags(world, "two", "--pred_field"), flags(world, "one")]
    lines = "".join(json.dumps({"flags": job, "log": str(world / f"{i}.log")}) + "\n" for i, job in enumerate(jobs))
    command = [sys.executable, "-m", "arkfast.evaluate.preset_worker"]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=240)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [{"code": 0, "last": False}, {"code": 2, "last": True}], done.stderr
    assert done.returncode == 2
    assert "WER" in (world / "0.log").read_text()
    assert "--pred_field" in (world / "1.log").read_text()
    assert not (world / "2.log").exists()
    assert done.stderr == ""
