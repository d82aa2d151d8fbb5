"""Figures, files and verdicts: percentiles, merging, what shares a file, and goals on rows made up for the purpose."""

import importlib
import itertools
import json
import re
import warnings

import pytest
import report
import torch
from harness import ceilings, clock, goals, results
from harness.suite import entries
from shapes import Shape

GROUPS = (
    *("row_topk", "linear_topk", "loss_block", "union_kl", "embed_merge", "sparse_grad", "log_softmax", "linear_kl"),
    *("rotary", "decode_step", "engine", "step"),
)


def row(group="row_topk", provider="ours/triton", check="passed", shape=None, **more):
    return {
        "group": group,
        "provider": provider,
        "ours": provider.startswith("ours"),
        "check": check,
        "device": "cuda",
        "gpu": "NVIDIA H200",
        "shape": shape or {"T": 4096, "V": 151_936, "K": 32},
        **more,
    }


def verdict(id, rows, words=""):
    goal = next(goal for goal in goals.GOALS if goal.id == id and words in goal.text)
    return goals.judge(goal, rows)


def test_percentiles_interpolate():
    assert clock.percentiles([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == {"p20": 2.0, "p50": 3.5, "p80": 5.0}
    assert clock.percentiles([7.0]) == {"p20": 7.0, "p50": 7.0, "p80": 7.0}


def test_calls_are_interleaved_over_all_input_sets(monkeypatch):
    device = torch.device("cpu")
    watch, order = clock.Clock(device), []
    cost = {"fast": 0.01, "slow": 0.1}

    def seconds(call, index):
        call(index)
        return cost[order[-1][0]]

    monkeypatch.setattr(watch, "seconds", seconds)
    calls = {name: lambda index, name=name: order.append((name, index)) for name in cost}
    samples = watch.interleaved(calls, 3, seconds=0.8)
    # 0.4 s for each, after one call each to see how long it takes.
    assert {name: len(found) for name, found in samples.items()} == {"fast": 40, "slow": 4}
    timed = order[2:]
    assert {index for name, index in timed if name == "fast"} == {0, 1, 2}
    slow = [i for i, (name, _) in enumerate(timed) if name == "slow"]
    assert min(b - a for a, b in itertools.pairwise(slow)) >= 10


def test_a_call_without_memory_does_not_take_the_others_figures(cpu):
    def greedy(index):
        if index == 1:
            raise torch.OutOfMemoryError("no room")

    samples = clock.Clock(cpu).interleaved({"greedy": greedy, "modest": lambda index: None}, 2, seconds=0.01)
    assert set(samples) == {"modest"}
    assert len(samples["modest"]) == clock.MOST


@pytest.mark.parametrize("waits", [0, 2])
def test_what_torch_says_of_its_sync_mode_is_no_wait(monkeypatch, waits):
    """It is said once a process, to the first provider of all."""
    notice = "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations"
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: warnings.warn(notice, stacklevel=1))

    def call(index):
        for _ in range(waits):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    assert clock.host_syncs(call, torch.device("cuda")) == waits


@pytest.mark.parametrize("queued", [True, False])
def test_a_call_that_stands_in_a_queue_is_launched_before_its_time_begins(monkeypatch, queued):
    order = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            order.append("event")

        def synchronize(self):
            order.append("waited")

        def elapsed_time(self, end):
            return 2.0

    watch = clock.Clock(torch.device("cpu"), queued=queued)
    watch.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: order.append("busy"))
    assert watch.seconds(lambda index: order.append(f"call {index}"), 3) == 2e-3
    assert order == [*(["busy"] if queued else []), "event", "call 3", "event", "waited"]


def test_enough_input_sets_to_overrun_the_cache(monkeypatch):
    monkeypatch.setattr(clock, "l2_bytes", lambda device: 50 << 20)
    gpu = torch.device("cuda")
    assert clock.sets_needed(1 << 30, gpu) == 3
    assert clock.sets_needed(12 << 20, gpu) == 9
    assert clock.sets_needed(1, gpu) == 16


def test_copy_rate_counts_the_bytes_that_were_copied():
    shape = Shape(T=16_384, V=163_958, K=32)
    moved = 2 * shape.T * shape.V
    assert moved > ceilings.COPY_LIMIT
    assert ceilings.rates("copy", shape, moved, 1e-3)["gb_s"] == pytest.approx(ceilings.COPY_LIMIT / 1e6)
    assert ceilings.rates("dense", Shape(T=10, V=100, H=8), 0, 1.0)["tflop_s"] == pytest.approx(6 * 10 * 100 * 8 / 1e12)


def test_a_rerun_replaces_whole_shapes_and_keeps_the_rest():
    a, b, c = {"T": 1}, {"T": 2}, {"T": 3}
    old = [
        row(shape=a, n=1),
        row(shape=a, provider="torch.topk", n=1),
        row(shape=b, n=1),
        row(shape=c, provider="all", check="not run", error="x"),
    ]
    late = {"provider": "all", "check": "not run", "error": "out of time"}
    new = [row(shape=a, n=2), row(shape=b, **late), row(shape=c, n=2), row(group="union_kl", shape=a, n=2)]
    merged = results.merge(old, new)
    assert [(r["group"], r["shape"]["T"], r["provider"], r.get("n")) for r in merged] == [
        ("row_topk", 2, "ours/triton", 1),
        ("row_topk", 1, "ours/triton", 2),
        ("row_topk", 3, "ours/triton", 2),
        ("union_kl", 1, "ours/triton", 2),
    ]


def test_figures_of_other_code_or_machines_get_a_file_of_their_own(tmp_path):
    about = results.machine(torch.device("cpu"), "abc")
    path = results.place(tmp_path, about)
    assert path == tmp_path / "cpu" / f"{about['date']}.json"
    results.write(path, {**about, "rows": []})
    assert results.place(tmp_path, about) == path
    assert results.place(tmp_path, {**about, "commit": "def"}).name == f"{about['date']}-2.json"
    assert results.place(tmp_path, {**about, "sources": "0"}).name == f"{about['date']}-2.json"
    assert results.place(tmp_path, {**about, "device": "cuda", "gpu": "NVIDIA H200"}).parent.name == "nvidia-h200"
    assert re.fullmatch(r"[0-9a-f]{16}", about["sources"])


def test_a_crash_while_writing_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    results.write(path, {"rows": [1]})
    with pytest.raises(ValueError, match="JSON"):
        results.write(path, {"rows": [float("nan")]})
    assert json.loads(path.read_text()) == {"rows": [1]}


def test_tables_line_up_and_say_what_failed():
    seconds = {"p20": 0.001, "p50": 0.002, "p80": 0.003}
    good = row(seconds=seconds, gb_s=3000.0, percent_of_copy=81.2, ratio=8.5, extra_bytes=2_000_000)
    lines = results.table([good, row(provider="eager", check="failed: a value is off")])
    assert lines[1].split() == [
        "row_topk",
        "T4096-V151936-K32",
        "ours/triton",
        "1.000",
        "2.000",
        "3.000",
        "2.0",
        "3000.0",
        "-",
        "81",
        "-",
        "8.50x",
    ]
    assert lines[2].endswith("failed: a value is off")
    assert "x" not in lines[2].split("eager")[1].split("failed")[0]


def test_a_report_has_memory_ceilings_notes_and_a_verdict_on_every_goal():
    seconds = {"p20": 0.001, "p50": 0.002, "p80": 0.003}
    rows = [
        row(seconds=seconds, gb_s=3000.0, percent_of_copy=81.2, percent_of_mm=70.4, ratio=8.5, extra_bytes=2_000_000),
        row(provider="eager", seconds=seconds, note="another objective"),
        row(provider="FlashInfer", check="failed: ids differ"),
        row(provider="liger", check="not run", error="no such package\nat all"),
    ]
    about = {"device": "cuda", "hardware": {"cpu": "a CPU", "gpu": "NVIDIA H200"}, "versions": {}, "date": "2026-01-31", "commit": "abc"}
    text = report.markdown({**about, "rows": rows, "goals": goals.lines(rows)})
    head, _, ours, *others = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert head == ["row_topk", "p20 ms", "p50 ms", "p80 ms", "peak MB", "GB/s", "% copy", "% mm", "faster", ""]
    assert ours == ["ours/triton", "1.000", "2.000", "3.000", "2.0", "3000.0", "81", "70", "8.50x", ""]
    assert [line[-1] for line in others[:3]] == ["another objective", "failed: ids differ", "no such package"]
    assert others[1][1:-1] == ["–"] * 8
    verdicts = others[5:]
    assert [line[0] for line in verdicts] == [goal.id for goal in goals.GOALS]
    assert next(line for line in verdicts if line[0] == "G2")[2:6] == ["≥ 80%", "88%", "81.2%", "met"]
    assert {line[5] for line in verdicts} == {"met", "not run"}
    assert "Goals" not in report.markdown({**about, "rows": rows})


def test_goals_are_met_missed_or_not_run():
    assert verdict("G2", []).state == "not run"
    met = [row(percent_of_copy=85.0), row(percent_of_copy=82.0, shape={"T": 16_384, "V": 151_936, "K": 32})]
    assert (verdict("G2", met).state, verdict("G2", met).figure) == ("met", 82.0)
    assert verdict("G2", [*met, row(percent_of_copy=10.0, shape={"T": 1_024, "V": 151_936, "K": 32})]).state == "met"
    assert verdict("G2", [row(percent_of_copy=79.9), *met]).state == "missed"
    assert verdict("G2", [row(percent_of_copy=99.0, device="cpu")]).state == "not run"
    assert verdict("G2", [row(check="failed: ids differ"), *met]).state == "missed"
    assert verdict("G2'", met, "FlashInfer").state == "not run"


def test_a_shape_that_was_lost_is_not_passed_over():
    met, place = row(percent_of_copy=85.0), {"T": 16_384, "V": 151_936, "K": 32}
    late = row(provider="all", check="not run", error="out of time", shape=place)
    died = {**late, "error": "the process ended with status -6"}
    assert verdict("G2", [met, late]).state == "met"
    assert "1 of 2 shapes were not run" in verdict("G2", [met, late]).why
    assert verdict("G2", [late]).why == "out of time"
    assert verdict("G2", [met, died]).state == "missed"
    assert "status -6" in verdict("G2", [met, died]).why


def test_upper_bounds_memory_and_floors():
    shape = {"T": 4096, "V": 151_936, "H": 896, "HT": 1024, "K": 32}
    block = row("loss_block", shape=shape, extra_bytes=(512 << 20) + 4096 * 5_500)
    assert verdict("G7", [block], "share").figure == pytest.approx(100)
    assert verdict("G7", [{**block, "extra_bytes": block["extra_bytes"] + 10**6}], "share").state == "missed"
    small = {**block, "shape": {**shape, "T": 1024}, "extra_bytes": block["extra_bytes"] - 3072 * 4_000}
    assert verdict("G7", [small, block], "each position").figure == 4_000
    student = row("union_kl", shape={k: v for k, v in shape.items() if k != "HT"}, seconds={"p50": 4.23e-4}, percent_of_dense=1_250.0)
    assert verdict("G3", [student], "timed, T = 4,096").figure == 12.5
    # 6 · 4096 · 151,936 · 896 / 790e12 = 4.23 ms.
    assert verdict("G3", [student], "790 TFLOP/s, T = 4,096").figure == pytest.approx(10, rel=2e-3)
    assert verdict("G3", [{**student, "gpu": "NVIDIA A100"}], "790 TFLOP/s, T = 4,096").state == "not run"
    grad = row("sparse_grad", shape=student["shape"], times_faster_than={"atomic/triton": 0.5})
    assert (verdict("K7", [grad]).state, verdict("K7", [grad]).figure) == ("missed", 2.0)


@pytest.mark.parametrize("goal", goals.GOALS, ids=lambda goal: f"{goal.id} {goal.text}")
def test_every_goal_has_a_shape_that_is_measured(goal):
    shapes = importlib.import_module(f"bench_{goal.group}").SUITE.shapes("cuda")
    asked = [shape for shape in shapes if goal.where({"shape": shape.sizes()})]
    assert asked
    assert all(shape.core for shape in asked)


@pytest.mark.parametrize("group", GROUPS)
def test_core_shapes_come_first_and_names_are_unique(group, cpu):
    suite = importlib.import_module(f"bench_{group}").SUITE
    shapes = suite.shapes("cuda")
    assert [shape.core for shape in shapes] == sorted((shape.core for shape in shapes), reverse=True)
    assert len({str(shape) for shape in shapes}) == len(shapes)
    names = [str(entry) for entry in entries(suite, cpu)]
    assert len(set(names)) == len(names)
    assert all(name.startswith("cpu-") for name in names)
