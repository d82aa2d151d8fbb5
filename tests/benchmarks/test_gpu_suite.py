"""The command that proves the kernels on a GPU, on a machine that has none: what it prints, writes, merges and survives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu_suite
import pytest
from providers.goals import GOALS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(cpu, monkeypatch, capsys):
    """Runs the suite here; its groups' processes see no GPU either."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpu_suite", *map(str, arguments)])
        status = gpu_suite.main()
        return status, capsys.readouterr().out

    return main


def test_without_a_gpu_it_says_so_marks_results_and_merges_reruns(run, tmp_path):
    status, said = run("--minutes", 2, "--out", tmp_path, "--only", "tests", "--only", "row_topk", "--commit", "abc")
    assert status == 0, said
    assert "No GPU is seen" in said
    assert said.count(" not run ") >= len(GOALS)
    (path,) = tmp_path.glob("cpu/*.json")
    held = json.loads(path.read_text())
    assert (held["device"], held["commit"], held["groups"]["tests"]["state"]) == ("cpu", "abc", "not run")
    assert {(row["device"], row["group"]) for row in held["rows"]} == {("cpu", "row_topk")}
    assert {row["check"] for row in held["rows"]} == {"passed", "none needed"}

    status, said = run("--minutes", 2, "--out", tmp_path, "--only", "union_kl", "--commit", "abc")
    assert status == 0, said
    assert list(tmp_path.glob("cpu/*.json")) == [path]
    merged = json.loads(path.read_text())
    assert {row["group"] for row in merged["rows"]} == {"row_topk", "union_kl"}
    assert [row for row in merged["rows"] if row["group"] == "row_topk"] == held["rows"]


def test_a_group_that_dies_keeps_its_rows_and_goes_on_after_the_shape(monkeypatch, tmp_path, cpu):
    shapes = gpu_suite.load("row_topk").shapes("cpu")
    skips = []

    def die_at_the_second(command, seconds, log):
        skip = int(command[command.index("--skip") + 1])
        skips.append(skip)
        rows = [
            {"group": "row_topk", "shape": shape.sizes(), "provider": "ours/torch", "ours": True, "check": "passed"}
            for shape in (shapes[:1] if skip == 0 else shapes[skip:])
        ]
        Path(command[command.index("--rows") + 1]).write_text(json.dumps({"rows": rows}))
        return (-6, "illegal memory access") if skip == 0 else (0, "")

    monkeypatch.setattr(gpu_suite, "timeout", die_at_the_second)
    state, rows = gpu_suite.run_group("row_topk", 60.0, 90.0, tmp_path / "log")
    assert skips == [0, 2]
    assert state["state"] == "crashed"
    assert "illegal memory access" in state["said"]
    assert [(row["provider"], row["check"]) for row in rows] == [
        ("ours/torch", "passed"),
        ("all", "not run"),
        ("ours/torch", "passed"),
    ]
    assert rows[1]["error"] == "the process ended with status -6"


def test_a_group_that_cannot_be_loaded_does_not_stop_the_others(run, monkeypatch, tmp_path):
    load = gpu_suite.load

    def missing(group):
        if group == "row_topk":
            raise ImportError("no such name in this version")
        return load(group)

    monkeypatch.setattr(gpu_suite, "load", missing)
    status, said = run("--minutes", 2, "--out", tmp_path, "--only", "row_topk", "--only", "sparse_grad")
    assert status == 1
    assert "row_topk: crashed" in said
    (path,) = tmp_path.glob("cpu/*.json")
    held = json.loads(path.read_text())
    assert "no such name in this version" in held["groups"]["row_topk"]["said"]
    assert held["groups"]["sparse_grad"]["state"] == "done"


def test_a_failed_check_of_ours_fails_the_suite(monkeypatch, tmp_path, cpu):
    shapes = gpu_suite.load("row_topk").shapes("cpu")
    row = {"group": "row_topk", "device": "cpu", "provider": "ours/torch", "ours": True, "check": "failed: ids differ"}

    def answer(command, seconds, log):
        rows = [{**row, "shape": shape.sizes()} for shape in shapes]
        Path(command[command.index("--rows") + 1]).write_text(json.dumps({"rows": rows}))
        return 1, ""

    monkeypatch.setattr(gpu_suite, "timeout", answer)
    monkeypatch.setattr(sys, "argv", ["gpu_suite", "--out", str(tmp_path), "--only", "row_topk"])
    assert gpu_suite.main() == 1
    (path,) = tmp_path.glob("cpu/*.json")
    assert json.loads(path.read_text())["groups"]["row_topk"]["state"] == "check failed"


def test_no_time_means_no_group_is_begun(run, tmp_path):
    status, said = run("--minutes", 0, "--out", tmp_path, "--only", "row_topk")
    assert status == 0
    assert "row_topk: not run, out of time" in said


def test_gpu_tests_without_hypothesis_leave_out_what_needs_it(monkeypatch):
    files, left = gpu_suite.test_files()
    assert left == []
    assert "tests/kernels/test_row_topk.py" in files
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*_gpu.py")} <= set(files)
    assert "tests/engine/test_engine_gpu.py" in files
    assert not any("interpret" in name or "aot" in name for name in files)
    monkeypatch.setattr(gpu_suite.importlib.util, "find_spec", lambda name: None)
    bare, left = gpu_suite.test_files()
    assert left
    assert sorted([*bare, *left]) == sorted(files)
    assert "tests/engine/test_engine_gpu.py" in bare
    assert set(bare).isdisjoint(left)


@pytest.mark.parametrize("out", ["results", "/somewhere/results"])
def test_the_script_builds_then_runs_with_a_folder_that_means_what_was_typed(tmp_path, out):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$PWD $PYTHONPATH $*" >>"{tmp_path}/calls"\n')
    python.chmod(0o755)
    subprocess.run(
        ["bash", str(ROOT / "scripts" / "gpu_suite.sh"), "--minutes", "3", "--out", out, "--only", "row_topk"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": str(python), "PYTHONPATH": ""},
        check=True,
    )
    build, suite = (tmp_path / "calls").read_text().splitlines()
    assert build == f"{ROOT} {ROOT} setup.py -q build_ext --inplace"
    assert suite == f"{ROOT} {ROOT} benchmarks/gpu_suite.py --minutes 3 --out {tmp_path / out} --only row_topk"
