"""The command that proves the kernels on a GPU, on a machine that has none: what it prints, writes, merges and survives."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import gpu_suite
import pytest
import torch
from harness import gpu_tests
from harness.goals import GOALS
from harness.results import machine
from harness.suite import device_here

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


def test_a_proof_that_the_time_left_no_room_for_is_not_the_one_of_an_earlier_run(run, monkeypatch, tmp_path):
    about = gpu_suite.machine(torch.device("cpu"), None)
    monkeypatch.setattr(gpu_suite, "machine", lambda device, commit: about)
    monkeypatch.setattr(gpu_suite, "prove", lambda *arguments: {"state": "passed"})
    assert run("--minutes", 1, "--out", tmp_path, "--only", "tests")[0] == 0
    monkeypatch.setattr(gpu_suite, "device_here", lambda: torch.device("cuda"))
    status, said = run("--minutes", 0, "--out", tmp_path, "--only", "tests")
    assert status == 1
    assert "tests: out of time, not begun" in said
    (path,) = tmp_path.glob("cpu/*.json")
    assert json.loads(path.read_text())["groups"]["tests"]["state"] == "out of time"


def test_what_a_command_started_ends_with_it(tmp_path):
    status, said = gpu_suite.timeout(["bash", "-c", "sleep 600 & echo $!; wait"], 1.0, tmp_path / "log")
    assert status is None
    child = Path(f"/proc/{said.strip()}/stat")
    # Ended, or waiting to be collected by whoever takes orphans here.
    assert not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_log_of_an_earlier_run_says_nothing_of_this_one(monkeypatch, tmp_path):
    (tmp_path / "a.log").write_text("test_a.py::test_a FAILED\n")
    monkeypatch.setattr(gpu_tests, "test_files", lambda: (["test_a.py"], []))
    monkeypatch.setattr(gpu_tests, "jobs", lambda files: ([gpu_tests.Job("a", ("test_a.py",))], []))
    assert gpu_tests.run_tests(0.0, tmp_path) == {"state": "out of time", "why": "not finished: a"}


def test_gpu_tests_without_hypothesis_leave_out_what_needs_it(monkeypatch):
    files, left = gpu_tests.test_files()
    assert left == []
    assert "tests/kernels/test_row_topk.py" in files
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*_gpu.py")} <= set(files)
    assert "tests/engine/test_engine_gpu.py" in files
    assert not any("interpret" in name or "aot" in name for name in files)
    monkeypatch.setattr(gpu_tests.importlib.util, "find_spec", lambda name: None)
    bare, left = gpu_tests.test_files()
    assert left
    assert sorted([*bare, *left]) == sorted(files)
    assert "tests/engine/test_engine_gpu.py" in bare
    assert set(bare).isdisjoint(left)


TESTS = {
    "passes": "def test_a(): pass\n@pytest.mark.skip\ndef test_b(): pass\n",
    "fails": "def test_a(): pass\ndef test_b(): assert 1 == 2\n",
    "sleeps": "def test_a(): pass\ndef test_b(): open(__file__ + '.begun', 'w'); time.sleep(600)\n",
    "fails_and_sleeps": "def test_a(): assert 1 == 2\ndef test_b(): open(__file__ + '.begun', 'w'); time.sleep(600)\n",
    "cannot_be_read": "import no_such_package\n",
    "dies": "def test_a(): os.abort()\n",
    "has_none": "x = 1\n",
}


@pytest.mark.parametrize(
    ("names", "state", "counts", "words"),
    [
        (("passes", "has_none"), "passed", "1 passed, 1 skipped", ""),
        (("passes", "fails"), "failed", "2 passed, 1 failed, 1 skipped", "assert 1 == 2"),
        (("passes", "sleeps"), "out of time", "2 passed, 1 skipped", "not finished: test_sleeps at "),
        (("fails_and_sleeps", "passes"), "failed", "1 passed, 1 failed, 1 skipped", "FAILED "),
        (("passes", "cannot_be_read"), "failed", "ended with status 2", "no_such_package"),
        (("dies",), "failed", "ended with status -6 at ", "test_dies.py::test_a"),
        (("has_none",), "failed", "no test was found", ""),
    ],
)
def test_what_failed_has_failed_whatever_the_time(monkeypatch, tmp_path, names, state, counts, words):
    files = []
    for name in names:
        path = tmp_path / f"test_{name}.py"
        path.write_text(f"import os, time\nimport pytest\npytestmark = pytest.mark.gpu\n{TESTS[name]}")
        files.append(str(path))
    monkeypatch.setattr(gpu_tests, "test_files", lambda: (files, []))
    monkeypatch.setattr(gpu_tests, "jobs", lambda files: ([gpu_tests.Job(Path(file).stem, (file,)) for file in files], []))
    monkeypatch.setattr(gpu_tests, "AT_ONCE", 2)

    started = []

    def start(*arguments, popen=subprocess.Popen, **settings):
        started.append(popen(*arguments, **settings))
        return started[-1]

    def monotonic():
        """The time is over when a test sleeps and the other file is through."""
        return 100.0 if any(tmp_path.glob("*.begun")) and [process.returncode for process in started].count(None) == 1 else 0.0

    monkeypatch.setattr(gpu_tests.subprocess, "Popen", start)
    monkeypatch.setattr(gpu_tests, "time", SimpleNamespace(monotonic=monotonic, sleep=time.sleep))
    found = gpu_tests.run_tests(60.0, tmp_path / "logs")
    assert found["state"] == state, found
    assert counts in found["why"]
    assert words in found["why"] + found.get("said", "")
    kept = {path.stem.removeprefix("test_") for path in (tmp_path / "logs").iterdir()}
    assert kept == set(names) - {"passes", "has_none"} - ({"has_none"} if state == "passed" else set())


def test_each_file_of_the_kernels_is_a_process_and_what_needs_the_memory_runs_alone():
    files, _ = gpu_tests.test_files()
    shared, alone = gpu_tests.jobs(files)
    assert len({job.name for job in (*shared, *alone)}) == len(shared) + len(alone)
    assert [job.arguments[0] for job in shared] == [file for file in files if not file.endswith("_gpu.py")]
    assert all(job.arguments[1:] == ("-k", f"not ({gpu_tests.ALONE})") for job in shared)
    assert alone[0].arguments == (*(job.arguments[0] for job in shared), "-k", gpu_tests.ALONE)
    assert {job.arguments[0] for job in alone[1:]} == {file for file in files if file.endswith("_gpu.py")}


@pytest.mark.parametrize(("state", "status"), [("passed", 0), ("failed", 1), ("out of time", 1), ("not run", 0)])
@pytest.mark.parametrize("group", gpu_suite.PROOFS)
def test_a_proof_that_was_not_finished_fails_the_suite(run, monkeypatch, tmp_path, group, state, status):
    monkeypatch.setattr(gpu_suite, "prove", lambda *arguments: {"state": state, "why": "because"})
    ended, said = run("--minutes", 1, "--out", tmp_path, "--only", group)
    assert ended == status
    assert f"{group}: {state} because" in said


@pytest.mark.parametrize(("ended", "said", "state"), [(0, "0 errors", "passed"), (9, "3 errors", "failed"), (None, "", "out of time")])
def test_every_access_is_checked_where_the_tool_is(monkeypatch, tmp_path, ended, said, state):
    commands = []

    def answer(command, seconds, log):
        commands.append(command)
        return ended, f"========= ERROR SUMMARY: {said}\n" if said else ""

    monkeypatch.setattr(gpu_suite, "timeout", answer)
    monkeypatch.setattr(gpu_suite.shutil, "which", lambda name, path=None: "/opt/compute-sanitizer")
    found = gpu_suite.prove("sanitizer", 60.0, tmp_path / "log", "cuda")
    assert found["state"] == state
    assert not said or found["why"] == f"ERROR SUMMARY: {said}"
    (command,) = commands
    assert command[0] == "/opt/compute-sanitizer"
    assert command[command.index("--error-exitcode") + 1] == "9"
    assert command[-1] == str(ROOT / "benchmarks" / "small_run.py")
    monkeypatch.setattr(gpu_suite.shutil, "which", lambda name, path=None: None)
    assert gpu_suite.prove("sanitizer", 60.0, tmp_path / "log", "cuda")["state"] == "not run"
    assert gpu_suite.prove("sanitizer", 60.0, tmp_path / "log", "cpu") == {"state": "not run", "why": "no GPU"}


def test_every_provider_runs_without_cudnn_attention_and_the_results_say_so():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        assert machine(device_here(), None)["cudnn_attention"] is False
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize(
    "said", ["========= Error: Device not supported. Please refer to the documentation", "========= Unable to attach to the process"]
)
def test_a_sanitizer_that_cannot_attach_has_not_run(monkeypatch, tmp_path, said):
    monkeypatch.setattr(gpu_suite, "timeout", lambda *_: (9, f"{said}\n========= ERROR SUMMARY: 0 errors\n"))
    monkeypatch.setattr(gpu_suite.shutil, "which", lambda name, path=None: "/opt/compute-sanitizer")
    found = gpu_suite.prove("sanitizer", 60.0, tmp_path / "log", "cuda")
    assert found["state"] == "not run"
    assert said.strip("= ") in found["why"]


@pytest.mark.parametrize("interpret", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_the_small_run_reaches_every_kernel_of_the_loss(interpret):
    done = subprocess.run(
        [sys.executable, str(gpu_suite.SMALL_RUN)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": interpret, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = {"opd_union_kl", "audio_embed_merge", "topk_lse", "linear_topk_lse", "sparse_weight_grad", "decode_attention"}
    assert wanted <= {line.partition(":")[0] for line in done.stdout.splitlines()}
    assert ("triton" in done.stdout) == (interpret == "1")
    assert ("torch" in done.stdout) == (interpret == "0")


@pytest.mark.parametrize(
    ("chosen", "builds"), [("", True), ("--only tests", True), ("--only row_topk", False), ("--call A", False), ("--dry_run", False)]
)
@pytest.mark.parametrize("out", ["results", "/somewhere/results"])
def test_the_script_builds_what_the_tests_need_then_runs_with_a_folder_that_means_what_was_typed(tmp_path, out, chosen, builds):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$PWD $PYTHONPATH $*" >>"{tmp_path}/calls"\n')
    python.chmod(0o755)
    subprocess.run(
        ["bash", str(ROOT / "scripts" / "gpu_suite.sh"), "--minutes", "3", "--out", out, *chosen.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": str(python), "PYTHONPATH": ""},
        check=True,
    )
    *build, suite = (tmp_path / "calls").read_text().splitlines()
    assert build == ([f"{ROOT} {ROOT} setup.py -q build_ext --inplace"] if builds else [])
    assert suite == f"{ROOT} {ROOT} benchmarks/gpu_suite.py --minutes 3 --out {tmp_path / out} {chosen}".rstrip()
