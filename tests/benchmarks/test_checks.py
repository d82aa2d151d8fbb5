"""Every suite at toy sizes: right answers pass, wrong ones fail, and no time stands beside a failed check."""

import dataclasses
import importlib

import pytest
import report
import shapes
import torch
from harness import clock, heads, oracles, results
from harness.suite import Suite, complaint, measure_shape

from arkfast.kernels import opd_union_kl, topk_lse

GROUPS = (
    *("row_topk", "linear_topk", "loss_block", "union_kl", "embed_merge", "sparse_grad", "log_softmax", "linear_kl"),
    *("rotary", "decode_step", "engine", "step"),
)


def suite_of(group) -> Suite:
    return importlib.import_module(f"bench_{group}").SUITE


def parts(result):
    return result if isinstance(result, tuple) else (result,)


def spoilt(provider, i):
    """The provider with part ``i`` of its answer wrong: a number turned around, an id moved by one."""

    def run(inputs):
        result = provider.run(inputs)
        wrong = list(parts(result))
        wrong[i] = wrong[i] + 1 if wrong[i].dtype in (torch.int32, torch.int64) else -wrong[i]
        return tuple(wrong) if isinstance(result, tuple) else wrong[0]

    return dataclasses.replace(provider, run=run)


@pytest.mark.parametrize(
    ("group", "shape"),
    [pytest.param(group, shape, id=f"{group}-{shape}") for group in GROUPS for shape in suite_of(group).shapes("cpu")],
)
def test_right_answers_pass_and_each_wrong_part_is_noticed(group, shape, cpu):
    suite = suite_of(group)
    x = suite.inputs(shape, cpu, 0)
    oracle = suite.oracle(shape, x)
    providers = suite.providers(shape, cpu)
    assert sum(provider.ours for provider in providers) >= 1
    assert sum(not provider.ours for provider in providers) >= 1
    for provider in providers:
        assert complaint(provider, x, oracle) is None, provider.name
        if provider.name in ("original", "chunked head"):
            assert complaint(spoilt(provider, 0), x, oracle), provider.name
            continue
        for i, part in enumerate(parts(provider.run(x))):
            if part is not None:
                assert complaint(spoilt(provider, i), x, oracle), f"{provider.name}, part {i}"


@pytest.mark.parametrize("group", ["union_kl", "sparse_grad", "loss_block"])
def test_an_exact_op_may_not_be_off_by_one_percent(group, cpu):
    suite = suite_of(group)
    shape = suite.shapes("cpu")[0]
    x = suite.inputs(shape, cpu, 0)
    oracle = suite.oracle(shape, x)
    ours = next(provider for provider in suite.providers(shape, cpu) if provider.ours)
    for i in range(3 if group != "sparse_grad" else 1):

        def run(inputs, i=i):
            result = ours.run(inputs)
            changed = [1.01 * part if j == i else part for j, part in enumerate(parts(result))]
            return tuple(changed) if isinstance(result, tuple) else changed[0]

        assert complaint(dataclasses.replace(ours, run=run), x, oracle), i


def test_what_fails_its_check_is_not_timed_and_is_nobodys_baseline(cpu):
    suite = suite_of("row_topk")
    shape = suite.shapes("cpu")[0]

    def providers(shape, device):
        return [spoilt(p, 0) if p.name == "torch.topk" else p for p in suite.providers(shape, device)]

    rows = measure_shape(dataclasses.replace(suite, providers=providers), shape, clock.Clock(cpu), 0.02)
    bad = next(row for row in rows if row["provider"] == "torch.topk")
    assert bad["check"].startswith("failed: a value is off")
    assert "seconds" not in bad
    assert all("ratio" not in row for row in rows)
    ours = next(row for row in rows if row["ours"])
    assert ours["check"] == "passed"
    assert set(ours["times_faster_than"]) == {"stable sort"}


def test_an_error_is_a_failed_check_and_no_memory_is_a_result(cpu):
    suite = suite_of("row_topk")
    shape = suite.shapes("cpu")[0]

    def fail(error):
        def run(inputs):
            raise error

        return run

    def providers(shape, device):
        first, second, *_ = suite.providers(shape, device)
        return [
            dataclasses.replace(first, run=fail(torch.OutOfMemoryError("no room"))),
            dataclasses.replace(second, run=fail(ValueError("bad k"))),
        ]

    ours, other = measure_shape(dataclasses.replace(suite, providers=providers), shape, clock.Clock(cpu), 0.02)[:2]
    assert (ours["check"], ours["error"]) == ("not run", "out of memory")
    assert other["check"] == "failed: ValueError: bad k"


def test_rows_say_what_was_measured_on_what(cpu):
    suite = suite_of("loss_block")
    shape = suite.shapes("cpu")[0]
    rows = measure_shape(suite, shape, clock.Clock(cpu), 0.02)
    assert {row["device"] for row in rows} == {"cpu"}
    assert {row["provider"] for row in rows} >= {"ours/torch", "eager", "ceiling: copy", "ceiling: mm", "ceiling: dense"}
    for row in rows:
        assert row["shape"] == {"T": 10, "V": 2003, "H": 32, "HT": 48, "K": 8}
        assert row["seconds"]["p20"] <= row["seconds"]["p50"] <= row["seconds"]["p80"]
    ours, mm = (next(row for row in rows if row["provider"] == name) for name in ("ours/torch", "ceiling: mm"))
    assert ours["percent_of_mm"] == pytest.approx(100 * mm["seconds"]["p50"] / ours["seconds"]["p50"])
    assert ours["peak_bytes"] is None
    text = report.markdown({**results.machine(cpu, "abc"), "rows": rows})
    assert "T10-V2003-H32-HT48-K8" in text
    assert all(row["provider"] in text for row in rows)


def test_the_original_is_the_mixture_of_scales_that_ours_reproduces(cpu):
    """Against the product's own "original" scores, and apart from the loss of the definition."""
    suite = suite_of("loss_block")
    shape = next(shape for shape in suite.shapes("cpu") if shape.mode == "original")
    x = suite.inputs(shape, cpu, 0)
    # Smaller logits, so that a row's log-sum-exp takes the student-only ids' mass away without being all of the loss.
    x = dataclasses.replace(x, weight_t=x.weight_t * 0.2)
    top = topk_lse(x.hidden_t @ x.weight_t.t(), shape.K, gather_ids=x.student_ids, need_lse=True)
    scores = torch.cat([top.gathered, top.values], dim=1)
    given = (x.hidden, x.weight, x.student_ids, top.ids, scores)
    theirs = opd_union_kl(*given, teacher_score="original", teacher_lse=top.lse).loss
    right = opd_union_kl(*given).loss
    got = heads.original(x)[0]
    assert abs(got - theirs) < 0.05
    assert abs(right - theirs) > 0.1


def test_the_loss_oracle_agrees_with_central_differences(cpu):
    """The one thing that every loss is checked against is checked against its own slope."""
    suite = suite_of("union_kl")
    shape = suite.shapes("cpu")[0]
    x = suite.inputs(shape, cpu, 0)
    hidden, weight = x.hidden.detach().double(), x.weight.detach().double()
    rest = (x.student_ids, x.teacher_ids, x.teacher_scores)
    oracle = oracles.sparse_loss(hidden, weight, *rest)
    step = 1e-5
    for tensor, grad in ((hidden, oracle.d_hidden), (weight, oracle.d_weight)):
        way = torch.randn(tensor.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        moved = [oracles.sparse_loss(*(t + s * way if t is tensor else t for t in (hidden, weight)), *rest).loss for s in (step, -step)]
        # Central differences err by step² times a third derivative of order 1, and by 1e-16 / step.
        assert (moved[0] - moved[1]).item() / (2 * step) == pytest.approx((grad * way).sum().item(), rel=1e-6)


def test_a_step_is_right_where_the_teachers_vocabulary_is_the_smaller_one(cpu, monkeypatch):
    """As in the published pair, whose student has 163,958 ids and whose teacher has 151,936."""
    step = importlib.import_module("bench_step")
    monkeypatch.setitem(shapes.MODELS, 56, dataclasses.replace(shapes.MODELS[48], V=1_950))
    monkeypatch.setitem(shapes.DECODERS, 56, (7, 1, 8, 130))
    monkeypatch.setitem(step.TEACHERS, "cpu", 56)
    (shape,) = step.shapes("cpu")
    assert (shape.V, shape.HT) == (2_003, 56)
    x = step.inputs(shape, cpu, 0)
    oracle = step.oracle(shape, x)
    for provider in step.providers(shape, cpu):
        assert complaint(provider, x, oracle) is None, provider.name
