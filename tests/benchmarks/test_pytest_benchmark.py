"""The suites under pytest-benchmark: collected by name, checked first, comparable from run to run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
ROOT = Path(__file__).resolve().parents[2]
BAD = """
import dataclasses
import bench_row_topk
from bench_row_topk import SUITE as GOOD, eager

def providers(shape, device):
    return [dataclasses.replace(p, run=lambda x: eager(x + 1, shape.K, False)) for p in GOOD.providers(shape, device)]

SUITE = dataclasses.replace(GOOD, shapes=lambda device: GOOD.shapes(device)[:1], providers=providers)

def test_row_topk(entry, timed):
    timed(entry)
"""


def run(folder, *arguments, cwd=ROOT):
    command = [sys.executable, "-m", "pytest", folder, "--benchmark-only", "-q", "-p", "no:cacheprovider", *map(str, arguments)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_a_suite_is_found_by_its_name_and_compares_with_an_earlier_run(tmp_path):
    storage = ("--benchmark-storage", f"file://{tmp_path}", "-k", "union_kl")
    first = run("benchmarks", *storage, "--benchmark-save=first")
    assert first.returncode == 0, first.stdout + first.stderr
    (saved,) = tmp_path.rglob("*_first.json")
    found = json.loads(saved.read_text())["benchmarks"]
    assert {one["name"].partition("[")[0] for one in found} == {"test_union_kl"}
    assert {one["extra_info"]["provider"] for one in found} == {"ours/torch", "dense eager"}
    assert {(one["extra_info"]["device"], one["extra_info"]["check"]) for one in found} == {("cpu", "passed")}
    second = run("benchmarks", *storage, "--benchmark-compare")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "(NOW)" in second.stdout
    assert "0001_first" in second.stdout


def test_a_failed_check_fails_the_benchmark_and_prints_no_time(tmp_path):
    (tmp_path / "conftest.py").write_text((ROOT / "benchmarks" / "conftest.py").read_text())
    (tmp_path / "bench_bad.py").write_text(BAD)
    done = run(".", "--import-mode=importlib", cwd=tmp_path)
    assert done.returncode == 1
    assert "it was not timed" in done.stdout
    assert "3 failed" in done.stdout
    assert "Median" not in done.stdout
