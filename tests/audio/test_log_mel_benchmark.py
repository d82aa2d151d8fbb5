"""The log-mel benchmark: what a row holds, that a wrong provider is never timed, and that results become tables and charts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bench_log_mel

    return bench_log_mel


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import report

    return report


def result_of(rows):
    return {
        "device": "cpu",
        "hardware": {"cpu": "some CPU"},
        "versions": {"torch": "2", "librosa": None},
        "commit": "0123456789abcdef",
        "date": "2026-01-31",
        "rows": rows,
    }


def test_a_wrong_provider_is_shown_without_a_time(bench, report, monkeypatch):
    right = next(provider for provider in bench.providers() if provider.ours)
    wrong = bench.Provider("wrong", lambda clips: right.run(clips) + np.float32(1e-5), 1e-6, True)
    monkeypatch.setattr(bench, "providers", lambda: [right, wrong])
    good, bad = bench.measured(bench.Shape("1 s", 1, 1), rounds=3)
    assert good["check"] == "passed"
    assert good["largest_error"] <= 1e-6
    assert 0 < good["seconds"]["p20"] <= good["seconds"]["p50"] <= good["seconds"]["p80"]
    assert good["x_real_time"] == pytest.approx(1 / good["seconds"]["p50"])
    assert "ratio" not in good, "there is nothing to compare with"
    assert bad["check"] == "failed: errs by 1.0e-05, may by 1e-06"
    assert {"seconds", "x_real_time", "ratio"}.isdisjoint(bad)
    table = report.markdown(result_of([good, bad]))
    assert table.startswith("some CPU (cpu), 2026-01-31, commit 0123456789ab; torch 2\n\n1 s\n\n| log_mel")
    (line,) = (line for line in table.splitlines() if line.startswith("| wrong"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["wrong", "–", "–", "–", "–", "1.0e-05", "failed: errs by 1.0e-05, may by 1e-06"]


def test_repeats_and_quantiles(bench):
    calls = []
    times = bench.interleaved({"a": lambda: calls.append("a"), "b": lambda: sum(range(100000))}, rounds=4, seconds=1e-5)
    assert set(times) == {"a", "b"}
    assert len(calls) >= 6
    assert all(taken["p20"] <= taken["p50"] <= taken["p80"] for taken in times.values())
    assert times["a"]["p50"] < times["b"]["p50"]


@pytest.mark.slow
def test_a_run_becomes_a_file_a_table_and_a_chart(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "bench_log_mel.py"), "--rounds", "2", "--only", "10 s", "--out", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    (path,) = (tmp_path / "cpu").iterdir()
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["device"] == "cpu"
    assert {"hardware", "versions", "commit", "date", "clock"} <= set(result)
    assert {row["check"] for row in result["rows"]} == {"passed"}
    assert sum(row["ours"] for row in result["rows"]) >= 2
    assert "transformers, NumPy" in run.stdout
    drawn = subprocess.run(
        [sys.executable, str(BENCHMARKS / "report.py"), str(path), "--out", str(tmp_path / "plots")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert drawn.stdout.startswith(run.stdout.split("\n\n")[0])
    assert (tmp_path / "plots" / "log_mel.png").read_bytes().startswith(b"\x89PNG")


def test_under_pytest_it_times_one_thread_or_nothing():
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    command = [sys.executable, "-m", "pytest", "bench_log_mel.py", "-q", "-p", "no:cacheprovider", "-rs", "--benchmark-only"]
    done = subprocess.run(command, cwd=BENCHMARKS, env={**os.environ, "OMP_NUM_THREADS": "4"}, capture_output=True, text=True)
    assert "passed" not in done.stdout
    assert "times are of one thread: set OMP_NUM_THREADS" in done.stdout
