"""The two calls in which a GPU is measured: their order, their time when something hangs, what they merge into, what is written when."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import gpu_suite
import pytest
import report
import torch
from harness import goals, plan, results, wheels
from harness.clock import Clock
from harness.suite import in_turn, measure_shape
from shapes import V_STUDENT

GPU = torch.device("cuda")
ROOT = Path(__file__).resolve().parents[2]


def suite_of(group):
    return importlib.import_module(f"bench_{group}").SUITE


def timed_row(item, **more):
    return {"group": item.group, "shape": item.shape.sizes(), "device": "cuda", "provider": "ours/triton", "ours": True, "check": "passed",
            "seconds": {"p20": 1.0, "p50": 1.0, "p80": 1.0}, **more}  # fmt: skip


def test_a_dry_run_names_every_goals_part_and_the_order(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_suite", "--dry_run"])
    assert gpu_suite.main() == 0
    said = capsys.readouterr().out
    assert "no row" not in said
    assert all(goal.text in said for goal in goals.GOALS)
    first = ("call A", "  look:", "  checks:", "    step opd-", "    engine transcribe-", "    loss_block T4096-")
    second = ("linear_topk T4096-", "linear_topk T16384-", "loss_block original-", "engine encoder-", "loss_block T1024-")
    order = [*first, "call B", *(f"    {word}" for word in second), "goals"]
    places = [said.index(word, said.index("call B") if i > len(first) else 0) for i, word in enumerate(order)]
    assert places == sorted(places)


def test_a_goal_without_a_row_fails_the_dry_run(monkeypatch, capsys):
    monkeypatch.setattr(gpu_suite, "call_b", lambda device, have: [])
    monkeypatch.setattr(sys, "argv", ["gpu_suite", "--dry_run"])
    assert gpu_suite.main() == 1
    assert "no row" in capsys.readouterr().out


def test_call_b_leaves_out_what_is_there_and_takes_up_what_was_cut_short():
    a = [item for part in plan.call_a("cuda") for item in part.items]
    rows = [timed_row(item) for item in a]
    b = [(item.group, str(item.shape)) for part in plan.call_b("cuda", plan.measured(rows)) for item in part.items]
    assert set(b).isdisjoint((item.group, str(item.shape)) for item in a)
    assert len(b) == len(set(b))
    first = a[0]
    cut = {**timed_row(first), "provider": "original", "ours": False, "check": "not run", "error": "out of time"}
    assert (first.group, first.index) in {
        (item.group, item.index) for part in plan.call_b("cuda", plan.measured([*rows, cut])) for item in part.items
    }
    every = {(group, str(shape)) for group in gpu_suite.SUITES for shape in suite_of(group).shapes("cuda")}
    assert set(b) | {(item.group, str(item.shape)) for item in a} == every


def test_both_checkpoints_vocabularies_are_measured():
    items = [item for part in plan.call_b("cuda") if part.name != "what is left" for item in part.items]
    real = {item.group for item in items if item.shape.V == V_STUDENT}
    assert {*plan.LEAD, "engine", "step"} <= real


class Watch:
    """A clock that only what is run moves on."""

    def __init__(self):
        self.now = 1_000.0

    def monotonic(self):
        return self.now


@pytest.mark.parametrize("name", ["A", "B"])
@pytest.mark.parametrize("hangs", ["all", "first"])
def test_a_call_keeps_to_its_time_when_a_provider_hangs(monkeypatch, tmp_path, cpu, name, hangs):
    """The processes are made up: one that hangs takes all the time that it is given, one that does not takes two seconds an item."""
    watch, given = Watch(), []
    monkeypatch.setattr(gpu_suite, "time", watch)
    monkeypatch.setattr(gpu_suite, "device_here", lambda: SimpleNamespace(type="cuda"))
    about = {**results.machine(torch.device("cpu"), "abc"), "device": "cuda", "gpu": "NVIDIA H200"}
    monkeypatch.setattr(gpu_suite, "machine", lambda device, commit: about)

    def process(command, seconds, log):
        assert seconds > 0
        given.append(seconds)
        what, skip = command[command.index("--measure") + 1], int(command[command.index("--skip") + 1]) if "--skip" in command else 0
        out = Path(command[command.index("--rows") + 1])
        rows = []
        if what != plan.LOOK:
            items = gpu_suite_items(what)[skip:]
            if hangs == "all" or len(given) == 3:
                # Ours was timed at the first shape; then another hangs.
                results.write(out, {"rows": [timed_row(items[0])], "complete": 0, "coming": "slow"})
                watch.now += seconds
                return None, ""
            rows = [timed_row(item) for item in items]
        watch.now += min(seconds, 2.0 * max(1, len(rows)))
        results.write(out, {"rows": rows, "complete": len(rows), "coming": ""})
        return 0, ""

    def gpu_suite_items(text):
        pairs = [part.split(":") for part in text.split(",")]
        return [plan.Item(group, int(i), suite_of(group).shapes("cuda")[int(i)]) for group, i in pairs]

    monkeypatch.setattr(gpu_suite, "timeout", process)
    monkeypatch.setattr(sys, "argv", ["gpu_suite", "--call", name, "--out", str(tmp_path), "--commit", "abc"])
    gpu_suite.main()
    assert watch.now - 1_000.0 <= 60 * plan.MINUTES[name] + 1e-6
    (path,) = tmp_path.glob("nvidia-h200/*.json")
    held = json.loads(path.read_text())
    parts = plan.call_a("cuda") if name == "A" else plan.call_b("cuda")
    # Each part had its turn, the last one too.
    assert [group for group in held["groups"] if held["groups"][group].get("why") != "not begun"] == [f"{name}: {p.name}" for p in parts]
    slow = [row for row in held["rows"] if row["provider"] == "slow"]
    assert slow
    assert {row["error"] for row in slow} == {"out of time"}
    for row in slow:
        ours = next(one for one in held["rows"] if results.key(one)[:2] == results.key(row)[:2] and one["ours"])
        assert ours["seconds"]["p50"] == 1.0


HANGS = """
import sys, time
import gpu_suite
def run(suite, *, seconds, skip, limit, on_rows):
    shape = suite.shapes("cpu")[0].sizes()
    on_rows([{"group": suite.name, "shape": shape, "provider": "ours/torch", "ours": True, "check": "passed"}], "slow")
    time.sleep(600)
gpu_suite.run = run
sys.exit(gpu_suite.main())
"""


def test_a_provider_that_hangs_ends_its_process_and_what_came_before_it_stays(tmp_path):
    out = tmp_path / "rows.json"
    arguments = ["--measure", "row_topk:0,union_kl:0", "--rows", str(out), "--limit", "0.5", "--seconds", "60"]
    done = subprocess.run(
        [sys.executable, "-c", HANGS, *arguments],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    held = json.loads(out.read_text())
    assert (held["complete"], held["coming"]) == (0, "slow")
    assert [row["provider"] for row in held["rows"]] == ["ours/torch"]


def test_ours_is_written_before_another_provider_begins(cpu):
    suite = suite_of("loss_block")
    shape = suite.shapes("cpu")[0]
    told = []
    rows = measure_shape(suite, shape, Clock(cpu), 0.02, lambda rows, coming: told.append((coming, [dict(row) for row in rows])))
    assert [coming for coming, _ in told] == [provider.name for provider in in_turn(suite, suite.providers(shape, cpu))]
    first_other = next(rows for coming, rows in told if coming == "eager")
    assert {row["provider"] for row in first_other if "seconds" in row} == {"ours/torch", "ceiling: copy", "ceiling: mm", "ceiling: dense"}
    ours, eager = (next(row for row in rows if row["provider"] == name) for name in ("ours/torch", "eager"))
    assert ours["ratio"] == pytest.approx(ours["times_faster_than"]["eager"])
    assert eager["ratio"] == 1.0


def test_a_suite_compiles_at_one_shape_alone():
    for group in gpu_suite.SUITES:
        suite = suite_of(group)
        found = [shape for shape in suite.shapes("cuda") for one in suite.providers(shape, GPU) if "ompile" in one.name]
        assert len(found) <= 1, group


def test_results_of_several_calls_and_folders_become_one(tmp_path, capsys):
    about = {"device": "cuda", "gpu": "NVIDIA H200", "hardware": {"cpu": "a CPU", "gpu": "NVIDIA H200"}, "versions": {}, "commit": "abc",
             "sources": "x", "date": "2026-01-31"}  # fmt: skip
    items = [item for part in plan.call_a("cuda") for item in part.items][:2]
    parts = [{**about, "rows": [timed_row(item)], "groups": {f"{i}": {"state": "done"}}, "goals": []} for i, item in enumerate(items)]
    other = {**parts[0], "commit": "def"}
    for i, result in enumerate([*parts, other]):
        results.write(tmp_path / f"folder {i}" / "one.json", result)
    report.main([str(tmp_path / "folder 0" / "one.json"), str(tmp_path / "folder 1"), str(tmp_path / "folder 2")])
    said = capsys.readouterr().out
    assert said.count("commit abc") == said.count("commit def") == 1
    (one, two) = results.merged([*parts, other])
    assert [len(one["rows"]), len(two["rows"])] == [2, 1]
    assert set(one["groups"]) == {"0", "1"}


def wheel(folder, name, body=b"answer = 42\n"):
    """A wheel of one module, ``name``, for any Python."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", body)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def test_wheels_that_travelled_are_found_by_what_is_started_where_the_machine_lacks_them(tmp_path):
    wheel(tmp_path, "nowhere_else")
    wheel(tmp_path, "numpy")
    environment = {**os.environ, "ARKFAST_WHEELS": str(tmp_path)}
    with wheels.at_hand(environment) as names:
        assert names == ["nowhere_else-1.0-py3-none-any.whl"]
        said = subprocess.run(
            [sys.executable, "-c", "import nowhere_else; print(nowhere_else.answer)"], env=environment, capture_output=True
        )
        assert said.stdout.strip() == b"42"
    assert environment.get("PYTHONPATH") == os.environ.get("PYTHONPATH")


def test_wheels_have_a_limit_and_lie_in_a_folder(monkeypatch, tmp_path):
    wheel(tmp_path, "nowhere_else")
    monkeypatch.setattr(wheels, "MOST", 10)
    with pytest.raises(wheels.WheelsError, match="may travel"), wheels.at_hand({"ARKFAST_WHEELS": str(tmp_path)}):
        pass
    with pytest.raises(wheels.WheelsError, match="not a folder"), wheels.at_hand({"ARKFAST_WHEELS": str(tmp_path / "none")}):
        pass


def test_a_sitting_cut_short_does_not_take_the_place_of_a_whole_one():
    item = plan.call_a("cuda")[2].items[0]
    whole = [timed_row(item, n=1), {**timed_row(item), "provider": "original", "ours": False}]
    cut = [timed_row(item, n=2), {**timed_row(item), "provider": "original", "ours": False, "check": "not run", "error": "out of time"}]
    assert results.merge(whole, cut) == whole
    assert results.merge(cut, whole) == whole
    assert results.merge(cut, cut) == cut


def test_the_first_look_writes_each_figure_at_once(cpu):
    lengths = []
    rows = gpu_suite.look(cpu, lambda rows: lengths.append(len(rows)))
    assert lengths == list(range(1, len(rows) + 1))
    assert [row["shape"]["mode"] for row in rows] == ["copy", "product", "attention", "attention", *["encoder"] * 4]
    assert {row["check"] for row in rows[4:]} == {"passed"}
    assert "masked: " in rows[2]["note"]
    assert results.table(rows)


def test_both_calls_run_to_their_end_at_toy_sizes_and_merge(monkeypatch, tmp_path, cpu):
    """Their parts in this process and of two suites, since starting a process for each would take longer than all that they do."""
    timed = []

    def process(command, seconds, log):
        timed.extend(command[command.index("--measure") + 1].split(","))
        monkeypatch.setattr(sys, "argv", [*command[1:], "--limit", "600"])
        return gpu_suite.main(), ""

    def few(parts):
        found = [dataclasses.replace(p, items=tuple(item for item in p.items if item.group in ("loss_block", "row_topk"))) for p in parts]
        return [part for part in found if part.items or part.name == plan.LOOK]

    monkeypatch.setattr(gpu_suite, "timeout", process)
    # It wants a file behind standard error, which pytest has taken away.
    monkeypatch.setattr(gpu_suite.faulthandler, "dump_traceback_later", lambda *_, **__: None)
    monkeypatch.setattr(gpu_suite, "call_a", lambda device: few(plan.call_a(device)))
    monkeypatch.setattr(gpu_suite, "call_b", lambda device, have: few(plan.call_b(device, have)))
    for name in ("A", "B"):
        monkeypatch.setattr(sys, "argv", ["gpu_suite", "--call", name, "--out", str(tmp_path), "--commit", "abc"])
        assert gpu_suite.main() == 0
    (path,) = tmp_path.glob("cpu/*.json")
    held = json.loads(path.read_text())
    assert {row["group"] for row in held["rows"]} == {plan.LOOK, "loss_block", "row_topk"}
    assert {row["check"] for row in held["rows"]} <= {"passed", "none needed"}
    assert len(timed) == len(set(timed)) == 1 + sum(len(suite_of(group).shapes("cpu")) for group in ("loss_block", "row_topk"))
    assert all(state["state"] == "done" for state in held["groups"].values())
