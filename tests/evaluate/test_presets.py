"""``scripts/evaluate_presets.sh``: its variables, its files, and how jobs share devices, with a stand-in for the evaluate command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from arkfast.evaluate import presets
from arkfast.evaluate.preset_jobs import PRESETS, Settings, check, check_gpus, devices
from arkfast.evaluate.presets import run
from arkfast.records import InputError
from arkfast.testing import synthetic_speech, tiny_checkpoint, write_wav

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "evaluate_presets.sh"

# Notes its arguments and when it starts and ends, and does what its preset's name says. It goes on only when as many jobs as
# TOGETHER stand side by side, or all are through: that shows without a clock that they do.
STAND_IN = """#!{python}
import json, os, sys, time
arguments = sys.argv[1:]
flags = dict(zip(arguments[arguments.index("--input")::2], arguments[arguments.index("--input") + 1::2]))
name = os.path.basename(flags["--input"])[len("test_"):-len(".jsonl")]
events = os.environ["EVENTS"]
def note(what):
    with open(events, "a") as file:
        file.write(json.dumps([what, name, os.environ["CUDA_VISIBLE_DEVICES"], arguments]) + "\\n")
note("start")
print("working on", name, flush=True)
end = time.monotonic() + 120
while open(events).read().count('["start"') < int(os.environ.get("TOGETHER", "1")) and time.monotonic() < end:
    time.sleep(0.01)
while name == "endless":
    time.sleep(0.05)
if "--summary" in flags:
    groups = [dict(preset=name, language="en")]
    json.dump(dict(schema=1, groups=groups), open(flags["--summary"], "w"))
note("end")
sys.exit("it broke" if name == "broken" else 0)
"""


@pytest.fixture
def world(tmp_path: Path) -> dict[str, str]:
    """Variables for a run of the stand-in over five presets in a folder whose name has a space."""
    data = tmp_path / "eval data"
    data.mkdir()
    for rows, name in enumerate(PRESETS.split(), start=1):
        (data / f"test_{name}.jsonl").write_text('{"audio": "a.wav", "text": "x"}\n' * rows)
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(STAND_IN.format(python=sys.executable))
    stand_in.chmod(0o755)
    (tmp_path / "model").mkdir()
    (tmp_path / "events").touch()
    return {
        "PATH": os.environ["PATH"],
        "PY": sys.executable,
        "EVAL_SCRIPT": str(stand_in),
        "MODEL_PATH": str(tmp_path / "model"),
        "EVAL_DATA_DIR": str(data),
        "OUTPUT_DIR": str(tmp_path / "out"),
        "EVENTS": str(tmp_path / "events"),
        "GPUS": "0 3",
    }


def start(world: dict[str, str], *flags: str, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", str(script), *flags], env=world, capture_output=True, text=True, timeout=120)


def events(world: dict[str, str]) -> list[tuple[str, str, str, list[str]]]:
    return [tuple(json.loads(line)) for line in Path(world["EVENTS"]).read_text().splitlines()]


def test_five_presets_on_two_gpus(world: dict[str, str]) -> None:
    done = start(world | {"TOGETHER": "2"}, "--normalizer", "none")
    assert done.returncode == 0, done.stderr
    seen = events(world)
    assert sorted(name for what, name, *_ in seen if what == "end") == sorted(PRESETS.split())
    assert {device for _, _, device, _ in seen} == {"0", "3"}
    running: dict[str, set[str]] = {"0": set(), "3": set()}
    for what, name, device, _ in seen:
        (running[device].add if what == "start" else running[device].remove)(name)
        assert len(running[device]) <= 1, seen
    assert {name for what, name, *_ in seen[:2] if what == "start"} == {"other", "net"}  # the largest first
    out = Path(world["OUTPUT_DIR"])
    assert (out / "clean.log").read_text() == "working on clean\n"
    assert (out / "clean.pid").read_text().strip().isdecimal()
    arguments = next(arguments for what, name, _, arguments in seen if name == "clean")
    assert arguments == [
        *("--input", f"{world['EVAL_DATA_DIR']}/test_clean.jsonl", "--output", f"{out}/test_clean_arkasr_result.jsonl"),
        *("--model_path", world["MODEL_PATH"], "--batch_size", "40", "--dtype", "auto", "--attn_impl", "sdpa"),
        *("--max_new_tokens", "256", "--max_audio_seconds", "40", "--normalizer", "none"),
    ]
    assert "[LAUNCH] gpu=0 preset=" in done.stdout
    assert [line.split()[:2] for line in done.stdout.splitlines()[-5:]] == [[name, "done"] for name in PRESETS.split()]
    assert (out / "presets_arkasr.md").read_text() in done.stdout


def test_every_variable_reaches_the_job(world: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    changed = {
        "PRESETS": "net",
        "SUFFIX": "mine",
        "PROCESSOR_PATH": str(tmp_path / "tokenizer"),
        "BATCH_SIZE": "7",
        "DTYPE": "float32",
        "ATTN_IMPL": "eager",
        "TEXT_NORMALIZE_PYTHON": "/usr/bin/python",
        "MAX_NEW_TOKENS": "99",
        "MAX_AUDIO_SECONDS": "12",
        "ROOT": str(ROOT),
    }
    assert start(world | changed).returncode == 0
    (_, _, _, arguments), _ = events(world)
    flags = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert flags == {
        "--input": f"{world['EVAL_DATA_DIR']}/test_net.jsonl",
        "--output": f"{world['OUTPUT_DIR']}/test_net_mine_result.jsonl",
        "--model_path": world["MODEL_PATH"],
        "--processor_path": str(tmp_path / "tokenizer"),
        "--batch_size": "7",
        "--dtype": "float32",
        "--attn_impl": "eager",
        "--max_new_tokens": "99",
        "--max_audio_seconds": "12",
        "--text_normalize_python": "/usr/bin/python",
    }


def test_a_failing_preset_fails_the_run_after_the_others_are_through(world: dict[str, str]) -> None:
    data = Path(world["EVAL_DATA_DIR"])
    (data / "test_broken.jsonl").write_text('{"audio": "a.wav"}\n' * 9)
    done = start(world | {"PRESETS": "aishell broken clean", "GPUS": "cpu"})
    assert done.returncode == 1
    assert [name for what, name, *_ in events(world) if what == "end"] == ["broken", "clean", "aishell"]
    assert [line.split()[:2] for line in done.stdout.splitlines()[-3:]] == [["aishell", "done"], ["broken", "failed"], ["clean", "done"]]
    assert "it broke" in done.stderr
    assert {device for _, _, device, _ in events(world)} == {""}  # a CPU job sees no GPU


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: (data / "test_other.jsonl").unlink(), "Missing input JSONL"),
        (lambda data: (data / "test_other.jsonl").write_text("\n \n"), "holds no rows"),
        (lambda data: (data / "test_other.jsonl").write_text("\nid,text\n"), "its first line is no JSON object"),
        (lambda data: (data.parent / "model").rmdir(), "MODEL_PATH"),
        (lambda data: (data.parent / "out").touch(), "OUTPUT_DIR"),
        (lambda data: (data.parent / "stand_in.py").unlink(), "EVAL_SCRIPT"),
    ],
)
def test_whatever_is_missing_nothing_is_started(world: dict[str, str], change: Any, message: str) -> None:
    change(Path(world["EVAL_DATA_DIR"]))
    done = start(world)
    assert done.returncode == 2
    assert message in done.stderr
    assert "nothing was started" in done.stderr
    assert events(world) == []
    assert not list(Path(world["OUTPUT_DIR"]).glob("*.pid"))


def test_all_missing_inputs_are_named_at_once(world: dict[str, str]) -> None:
    done = start(world | {"PRESETS": "absent clean gone"})
    assert done.returncode == 2
    assert "test_absent.jsonl" in done.stderr
    assert "test_gone.jsonl" in done.stderr
    assert "test_clean.jsonl" not in done.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MODEL_PATH": "", "OUTPUT_DIR": ""}, "set MODEL_PATH, OUTPUT_DIR"),
        ({"PRESETS": "clean net clean"}, "'clean' stands there 2 times"),
        ({"PRESETS": "../clean"}, "is a path"),
        ({"GPUS": " "}, "names nothing"),
    ],
)
def test_wrong_variables_are_named(world: dict[str, str], variables: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings.from_environment(world | variables)


@pytest.mark.parametrize(
    ("variables", "flags", "message"),
    [
        ({"PROCESSOR_PATH": "/nowhere/tokenizer"}, [], "PROCESSOR_PATH /nowhere/tokenizer: no such folder"),
        ({"BATCH_SIZE": "many"}, [], "--batch_size: expected int"),
        ({"DTYPE": "float8"}, [], "--dtype: expected one of"),
        ({"MAX_NEW_TOKENS": "0"}, [], "max_new_tokens must be at least 1"),
        ({}, ["--normaliser", "none"], "unknown flag --normaliser; did you mean normalizer"),
    ],
)
def test_what_evaluate_would_refuse_starts_nothing(
    world: dict[str, str], variables: dict[str, str], flags: list[str], message: str
) -> None:
    settings = Settings.from_environment(world | {"EVAL_SCRIPT": "", "GPUS": "cpu"} | variables, flags)
    with pytest.raises(InputError, match=message):
        check(settings)
    check(Settings.from_environment(world | {"EVAL_SCRIPT": "", "GPUS": "cpu"}, ["--normalizer", "none"]))


def test_inputs_that_could_not_be_scored_start_nothing(world: dict[str, str]) -> None:
    data = Path(world["EVAL_DATA_DIR"])
    (data / "test_clean.jsonl").write_text('{"audio": "a.wav", "text": "x", "speaker": "s"}\n' * 2)
    settings = Settings.from_environment(
        world | {"EVAL_SCRIPT": "", "GPUS": "cpu", "PRESETS": "clean net meeting"}, ["--group_by", "speaker"]
    )
    with pytest.raises(InputError, match="nothing was started") as caught:
        check(settings)
    faults = str(caught.value).splitlines()[1:]
    assert [fault.split(": ")[0].strip() for fault in faults] == [f"{data}/test_{name}.jsonl:1" for name in ("net", "meeting")]
    assert all("field 'speaker', by which --group_by resamples" in fault for fault in faults)
    settings = Settings.from_environment(world | {"EVAL_SCRIPT": "", "GPUS": "cpu", "TEXT_NORMALIZE_PYTHON": "/nowhere/python"})
    with pytest.raises(InputError, match="--text_normalize_python /nowhere/python: cannot be started"):
        check(settings)


def test_being_ended_ends_the_jobs(world: dict[str, str]) -> None:
    Path(world["EVAL_DATA_DIR"], "test_endless.jsonl").write_text('{"audio": "a.wav"}\n' * 9)
    process = subprocess.Popen(
        ["bash", str(SCRIPT)],
        env=world | {"PRESETS": "endless clean", "GPUS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 120
    pid = Path(world["OUTPUT_DIR"], "endless.pid")  # written after the job has been started, so its own note may come first
    while not (events(world) and pid.is_file() and pid.read_text().endswith("\n")) and time.monotonic() < end:
        time.sleep(0.02)
    job = int(pid.read_text())
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "interrupted" in said
    with pytest.raises(ProcessLookupError):
        os.kill(job, 0)
    assert [name for _, name, *_ in events(world)] == ["endless"]  # nothing was started afterwards


# Speaks the worker's part, notes each job, and does what its preset's name says.
WORKER = """#!{python}
import json, os, signal, sys
assert sys.argv[1:] == ["-m", "arkfast.evaluate.preset_worker"], sys.argv
for line in sys.stdin:
    job = json.loads(line)
    flags = dict(zip(job["flags"][::2], job["flags"][1::2]))
    name = flags["--preset"]
    with open(os.environ["EVENTS"], "a") as file:
        file.write(json.dumps([name, os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"], job["flags"]]) + "\\n")
    with open(job["log"], "a") as log:
        log.write(f"working on {{name}}\\n")
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    json.dump(dict(schema=1, groups=[dict(preset=name, language="en")]), open(flags["--summary"], "w"))
    code = dict(broken=2, failing=1).get(name, 0)
    print(json.dumps(dict(code=code, last=code > 1)), flush=True)
    if code > 1:
        sys.exit(code)
"""


@pytest.fixture
def worker(world: dict[str, str], tmp_path: Path) -> str:
    """A stand-in for the interpreter that runs the worker."""
    path = tmp_path / "worker.py"
    path.write_text(WORKER.format(python=sys.executable))
    path.chmod(0o755)
    return str(path)


def test_one_process_takes_all_presets_of_a_device(world: dict[str, str], worker: str) -> None:
    environment = world | {"EVAL_SCRIPT": "", "PRESETS": "clean net meeting", "GPUS": "1"}
    settings = Settings.from_environment(environment)
    jobs = check(settings)
    old = settings.job("clean").log
    old.write_text("of the run before")
    run(jobs, settings, environment, python=worker)
    assert [job.code for job in jobs] == [0, 0, 0]
    seen = [json.loads(line) for line in Path(world["EVENTS"]).read_text().splitlines()]
    assert [name for name, *_ in seen] == ["net", "meeting", "clean"]  # the largest first
    assert len({pid for _, pid, *_ in seen}) == 1
    assert {job.pid.read_text() for job in jobs} == {f"{seen[0][1]}\n"}
    assert {device for _, _, device, _ in seen} == {"1"}
    assert old.with_name("clean.log.old").read_text() == "of the run before"
    assert [job.log.read_text() for job in jobs] == [f"working on {job.preset}\n" for job in jobs]
    flags = dict(zip(seen[2][3][::2], seen[2][3][1::2], strict=True))
    out = world["OUTPUT_DIR"]
    assert (flags["--summary"], flags["--html"]) == (f"{out}/test_clean_arkasr_summary.json", f"{out}/test_clean_arkasr.html")
    assert (flags["--preset"], flags["--device"]) == ("clean", "cuda")
    found = presets.read_summaries(jobs, 0.0)
    assert [group["preset"] for name in ("clean", "net") for group in found[name]["groups"]] == ["clean", "net"]
    assert presets.read_summaries(jobs, time.time() + 3600) == {}  # an earlier run's scores are not this run's


def test_each_device_has_a_process_of_its_own(world: dict[str, str], worker: str) -> None:
    environment = world | {"EVAL_SCRIPT": "", "GPUS": "cpu cpu"}
    settings = Settings.from_environment(environment)
    jobs = check(settings)
    run(jobs, settings, environment, python=worker)
    assert [job.code for job in jobs] == [0] * 5
    assert 1 <= len({json.loads(line)[1] for line in Path(world["EVENTS"]).read_text().splitlines()}) <= 2


@pytest.mark.parametrize(("name", "code", "processes"), [("broken", 2, 2), ("killed", -9, 2), ("failing", 1, 1)])
def test_a_job_that_fails_costs_the_others_no_more_than_a_new_process(
    world: dict[str, str], worker: str, name: str, code: int, processes: int
) -> None:
    (Path(world["EVAL_DATA_DIR"]) / f"test_{name}.jsonl").write_text('{"audio": "a.wav", "text": "x"}\n' * 4)
    environment = world | {"EVAL_SCRIPT": "", "PRESETS": f"other {name} clean", "GPUS": "cpu"}
    settings = Settings.from_environment(environment)
    jobs = check(settings)
    run(jobs, settings, environment, python=worker)
    assert [job.code for job in jobs] == [0, code, 0]
    seen = [json.loads(line) for line in Path(world["EVENTS"]).read_text().splitlines()]
    assert [event[0] for event in seen] == ["other", name, "clean"]
    assert len({event[1] for event in seen}) == processes
    assert (seen[0][1] == seen[1][1], seen[1][1] == seen[2][1]) == (True, processes == 1)


def test_gpus_that_are_not_there_start_nothing(world: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    settings = Settings.from_environment(world | {"EVAL_SCRIPT": "", "GPUS": "0 1 cpu"})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"nothing was started:\n  GPUS: 1: torch sees 1 GPU\(s\)"):
        check_gpus(settings, {})
    check_gpus(settings, {"CUDA_VISIBLE_DEVICES": "0"})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match=r"GPUS: 0, 1: .* set GPUS=cpu"):
        check_gpus(settings, {})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_gpus(settings, {})


def test_without_names_every_visible_gpu_is_used(world: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    settings = Settings.from_environment(world | {"GPUS": ""})
    assert devices(settings, {"CUDA_VISIBLE_DEVICES": "2,5"}) == ["2", "5"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert devices(settings, {}) == ["0", "1", "2"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices(settings, {}) == ["cpu"]
    assert devices(Settings.from_environment(world), {"CUDA_VISIBLE_DEVICES": "2,5"}) == ["0", "3"]


def test_an_interpreter_that_is_not_there_is_a_failed_job(world: dict[str, str]) -> None:
    settings = Settings.from_environment(world | {"PRESETS": "clean net", "GPUS": "cpu"})
    jobs = check(settings)
    run(jobs, settings, world, python="/nowhere/python")
    assert [job.outcome() for job in jobs] == ["failed (127)", "failed (127)"]


def test_the_originals_path_leads_here_and_keeps_its_order(world: dict[str, str]) -> None:
    done = start(world | {"PRESETS": "clean"}, script=ROOT / "scripts" / "eval" / "run_arkasr_eval.sh")
    assert done.returncode == 0, done.stderr
    assert events(world)[0][3][-2:] == ["--sort", "cer_errors"]


@pytest.mark.slow
def test_two_presets_with_a_real_checkpoint(tmp_path: Path) -> None:
    model, tokenizer = tiny_checkpoint(tmp_path / "model"), tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).rename(tokenizer / name)
    data = tmp_path / "data"
    data.mkdir()
    for seed, name in enumerate(("clean", "aishell")):
        write_wav(data / f"{name}.wav", synthetic_speech(0.6, seed=seed))
        row = {"audio": f"{name}.wav", "text": "one two", "language": "en" if name == "clean" else "zh"}
        (data / f"test_{name}.jsonl").write_text(json.dumps(row) + "\n")
    out = tmp_path / "out"
    world = {
        **os.environ,
        "PY": sys.executable,
        "MODEL_PATH": str(model),
        "PROCESSOR_PATH": str(tokenizer),
        "EVAL_DATA_DIR": str(data),
        "OUTPUT_DIR": str(out),
        "PRESETS": "clean aishell",
        "GPUS": "cpu",
        "MAX_NEW_TOKENS": "8",
    }
    done = start(world)
    assert done.returncode == 0, done.stderr + done.stdout
    for name in ("clean", "aishell"):
        summary = json.loads((out / f"test_{name}_arkasr_summary.json").read_text())
        assert [group["preset"] for group in summary["groups"]] == [name]
        assert f"test_{name}" in (out / f"test_{name}_arkasr_result.jsonl").name
        assert (out / f"test_{name}_arkasr.html").read_text().startswith("<!DOCTYPE html>")
    assert (out / "clean.pid").read_text() == (out / "aishell.pid").read_text(), "one process took both"
    assert "| clean |" in done.stdout
    overall = (out / "presets_arkasr.html").read_text()
    assert "2 test sets, " in overall
    assert "2 of 2" in overall
    assert (out / "presets_arkasr.md").read_text() in done.stdout
