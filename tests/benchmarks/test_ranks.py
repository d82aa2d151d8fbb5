"""Training over several processes as the GPU suite measures it: rehearsed with gloo, and what is not run, fails or runs out of time."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import gpu_suite
import pytest
import report
import torch
from harness import ranks

ROOT = Path(__file__).resolve().parents[2]
GPU = torch.device("cuda")


def launches(monkeypatch, *, gpus, loss=lambda count, fewer: 1.5, time=lambda count: 1.0, status=0):
    """Commands that are made up, on a machine with so many GPUs: they write a log and no more."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(ranks, "prepare", lambda *_: None)
    said = []

    def run(command, seconds, log):
        said.append(command)
        count = int(command[command.index("--nproc_per_node") + 1])
        out = Path(command[command.index("--output_dir") + 1])
        out.mkdir()
        resumed = "--resume_from_checkpoint" in command
        rows = [
            {
                "step": step,
                "loss": loss(count, resumed),
                "time_per_step": time(count),
                "rollout_time_max": 0.25,
                "audio_seconds": 160.0 * count,
            }
            for step in range(6 if resumed else 1, 11)
        ]
        (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return status, "a line\nits last line"

    return run, said


def measured(run, folder, counts=(1, 2, 4, 8), seconds=lambda: 100.0):
    return list(ranks.measure(counts, GPU, folder, seconds, run, folder / "log"))


def test_each_count_scales_against_the_fewest_and_is_gone_on_with_by_fewer(monkeypatch, tmp_path):
    run, said = launches(monkeypatch, gpus=4, time=lambda count: 1.0 + 0.25 * (count == 4))
    rows = measured(run, tmp_path)
    found = {(row["shape"]["mode"], row["shape"]["ranks"]): row for row in rows}
    assert [found["step", n]["percent_of_fewest"] for n in (1, 2, 4)] == [100.0, 100.0, 80.0]
    assert [found["step", n]["x_real_time"] for n in (1, 2, 4)] == [160.0, 320.0, 512.0]
    assert found["rollout", 4]["seconds"]["p50"] == 0.25
    assert "NCCL" in found["step", 4]["note"]
    assert (found["step", 8]["check"], found["step", 8]["error"]) == ("not run", "8 processes wanted, and there are 4 GPUs")
    assert [(n, found["resume", n]["shape"]["to"], found["resume", n]["check"]) for n in (2, 4)] == [(2, 1, "passed"), (4, 2, "passed")]
    last = said[-1]
    assert last[last.index("--nproc_per_node") + 1] == "2"
    assert last[last.index("--resume_from_checkpoint") + 1].endswith("4/checkpoints/global_step_5")
    assert last[last.index("--micro_batches_per_step") + 1] == "4", "a step takes as much data as before"
    assert {command[command.index("--sharding") + 1] for command in said} == {"optimizer"}


def test_another_loss_after_a_resume_fails(monkeypatch, tmp_path):
    run, _ = launches(monkeypatch, gpus=2, loss=lambda count, resumed: 1.6 if resumed else 1.5)
    rows = measured(run, tmp_path)
    (row,) = (row for row in rows if row["shape"]["mode"] == "resume")
    assert row["check"] == "failed: step 6 had loss 1.5 and has 1.6"


def test_a_launch_that_fails_or_has_no_time_left_says_so(monkeypatch, tmp_path):
    run, _ = launches(monkeypatch, gpus=1, status=2)
    (row, *_) = measured(run, tmp_path, counts=(1,))
    assert (row["check"], row["error"]) == ("not run", "the launch ended with status 2: its last line")
    run, _ = launches(monkeypatch, gpus=1)
    (row,) = measured(run, tmp_path, counts=(1,), seconds=lambda: 0.0)
    assert row["error"] == "out of time"
    run, _ = launches(monkeypatch, gpus=1, loss=lambda *_: None)
    (tmp_path / "null").mkdir()
    (row,) = measured(run, tmp_path / "null", counts=(1,))
    assert "a loss is no number" in row["error"]


def test_the_suite_merges_its_rows_and_fails_where_one_did(monkeypatch, tmp_path, cpu, capsys):
    run, _ = launches(monkeypatch, gpus=0)
    monkeypatch.setattr(gpu_suite, "timeout", run)
    monkeypatch.setattr(sys, "argv", ["gpu_suite", "--ranks", "1,2,4", "--out", str(tmp_path), "--commit", "abc"])
    assert gpu_suite.main() == 0
    (path,) = tmp_path.glob("cpu/*.json")
    held = json.loads(path.read_text())
    assert held["groups"]["ranks"]["state"] == "done"
    assert {row["group"] for row in held["rows"]} == {"ranks"}
    assert "% of perfect scaling" in report.markdown(held)
    assert "4 processes wanted" in report.markdown(held)
    run, _ = launches(monkeypatch, gpus=0, status=1)
    monkeypatch.setattr(gpu_suite, "timeout", run)
    assert gpu_suite.main() == 1
    again = json.loads(path.read_text())
    assert again["groups"]["ranks"]["state"] == "crashed"
    assert [row for row in again["rows"] if "seconds" in row] == [row for row in held["rows"] if "seconds" in row], (
        "what was measured stands"
    )
    capsys.readouterr()


@pytest.mark.parametrize(
    "words", [["--ranks", "0"], ["--ranks", "two"], ["--ranks", "1", "--call", "A"], ["--ranks", "1", "--only", "step"]]
)
def test_flags_that_say_nothing_are_refused(monkeypatch, cpu, words, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_suite", *words])
    with pytest.raises(SystemExit):
        gpu_suite.main()
    assert "--ranks" in capsys.readouterr().err


def test_the_readme_says_that_several_gpus_are_untested_until_results_say_otherwise():
    files = [json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "benchmarks" / "results").rglob("*.json")]
    seen = any(
        row["group"] == "ranks" and row["device"] == "cuda" and row["shape"]["ranks"] > 1 and row["check"] == "passed"
        for result in files
        for row in result.get("rows", [])
    )
    said = "several GPUs are untested" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert said != seen


@pytest.mark.slow
def test_two_processes_train_decode_and_go_on_as_one_with_gloo(monkeypatch, tmp_path, cpu):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    options = SimpleNamespace(minutes=10.0, out=tmp_path, commit="abc")
    assert gpu_suite.over_ranks(options, [1, 2]) == 0
    (path,) = tmp_path.glob("cpu/*.json")
    rows = json.loads(path.read_text())["rows"]
    assert [(row["shape"]["mode"], row["shape"]["ranks"], row["check"]) for row in rows] == [
        ("step", 1, "passed"), ("rollout", 1, "passed"), ("step", 2, "passed"), ("rollout", 2, "passed"), ("resume", 2, "passed"),
    ]  # fmt: skip
    loss = float(rows[-1]["note"].split("had loss ")[1].split()[0])
    assert loss > 0.01, "student and teacher differ, so that the loss says something"
