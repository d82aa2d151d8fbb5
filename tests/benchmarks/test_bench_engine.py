"""The engine's benchmark: its arithmetic, how it counts, where it makes transcripts end, and what its checks notice."""

import dataclasses
import itertools

import bench_engine
import pytest
import torch
from harness import clock, engine_step, engine_transcribe, goals, launches, speech
from harness.suite import complaint, measure_shape
from shapes import MODELS, Shape, clip_shape, encoder_frames, mixed_seconds, prompt_length

from arkfast.engine import Engine
from arkfast.models.arkasr.prompt import audio_token_count

TOY, SMALL = 48, 192
STEP = Shape(T=5, V=MODELS[TOY].V, H=TOY, mode="step")


@pytest.fixture
def recordings(cpu):
    return engine_transcribe.inputs(clip_shape(TOY, 6, "transcribe"), cpu, 0)


@pytest.mark.parametrize("H", [TOY, SMALL])
def test_weights_are_counted_as_the_model_has_them(H, cpu):
    model = speech.model(H, cpu)
    assert speech.decoder_weights(H) == sum(p.numel() for p in model.model.parameters()) - (MODELS[H].V - speech.scored(H)) * H
    assert speech.encoder_weights(H) == sum(p.numel() for p in model.audio_encoder.parameters() if p.ndim > 1)
    assert len(speech.prompt(H).ids(1_000)) == prompt_length(10.0)
    assert audio_token_count(1_000) == encoder_frames(10.0) // 4


def test_the_published_model_costs_what_is_known_of_it():
    """Figures of the 0.6B model: 358 M parameters in layers and 136 M in the head, 12,288 bytes of cache a position, 676 GFLOP a clip."""
    assert speech.decoder_weights(896) == pytest.approx(358e6 + 136e6, rel=2e-3)
    assert 2 * speech.position_numbers(896) == 12_288
    assert speech.encoder_flop(896, 10.0) == pytest.approx(676e9, rel=1e-2)
    assert speech.prefill_flop(896, 10.0) == pytest.approx(101e9, rel=5e-2)
    step = engine_step.work(Shape(T=64, V=163_958, H=896, mode="step"))
    # Weights, 64 rows of 151 keys, and logits written and read.
    assert step.read == pytest.approx(2 * 494e6 + 64 * 151 * 12_288 + 4 * 64 * 151_936, rel=1e-3)


@pytest.mark.parametrize(("H", "clips"), [(896, 64), (SMALL, 32)])
def test_mixed_clips_are_as_long_as_speech_is(H, clips):
    seconds = mixed_seconds(H, clips)
    assert seconds == mixed_seconds(H, clips)
    assert 1 <= min(seconds) < 4
    assert 2 < max(seconds) / (sum(seconds) / clips) < 3.1
    assert max(seconds) <= 30
    shape = clip_shape(H, clips, "transcribe")
    assert sum(-(-round(100 * one) // 2) for one in seconds) == shape.T


def test_operations_are_counted_on_a_cpu(cpu):
    x = torch.ones(3)
    found = launches.launches(lambda: (x + 1).mul_(2).sum(), cpu)
    assert found == {"launches": 3, "launches_are": "dispatched aten operations"}


def test_transcripts_end_where_they_should_and_differ(recordings):
    x = recordings
    for run in (engine_transcribe.ours, engine_transcribe.original):
        ids, lens = run(x)
        assert lens.tolist() == x.limits == [max(2, round(3 * one)) for one in mixed_seconds(TOY, 6)]
        for row, n in zip(ids, lens, strict=True):
            assert (row[: n - 1] < MODELS[TOY].text).all(), "the text alone"
            assert (row[n - 1 :] == 0).all()
        assert len({int(one) for one in ids.flatten()}) >= 10, "too few distinct ids for a comparison to mean anything"


def test_the_end_wins_at_each_rows_own_place(cpu):
    ends, ids = engine_transcribe.EndsAt([1, 3, 1], 4, 7, cpu), torch.zeros(3, 4, dtype=torch.int64)
    scores = torch.rand(3, 9)
    scores[:, 7] = -1
    assert ends(ids, scores).argmax(1).eq(7).tolist() == [True, False, True]
    later = torch.zeros(3, 5, dtype=torch.int64)
    assert torch.equal(ends(later, scores), scores)
    assert ends(torch.zeros(3, 6, dtype=torch.int64), scores).argmax(1).eq(7).tolist() == [False, True, False]


def test_transcripts_of_the_wrong_clips_are_noticed(recordings, cpu):
    """The engine's rows in another order, and all but one id right."""
    x, shape = recordings, clip_shape(TOY, 6, "transcribe")
    oracle = engine_transcribe.oracle(shape, x)
    assert len(oracle) == 3
    ours, original = engine_transcribe.providers(shape, cpu)
    ids, lens = ours.run(x)
    assert ours.check(x, (ids, lens), oracle) is None
    assert "another length" in ours.check(x, (ids, lens.flip(0)), oracle)
    changed = ids.clone()
    longest = engine_transcribe.picked(x)[0]
    changed[longest, 1] = (changed[longest, 1] + 1) % MODELS[TOY].text
    assert "other ids than generate" in ours.check(x, (changed, lens), oracle)
    # In bfloat16 there is nothing to compare with but the scores.
    assert "not the best" in ours.check(x, (changed, lens), {})
    assert "not the best" in original.check(x, (changed, lens), {})


@pytest.mark.parametrize("change", ["position", "keys"])
def test_a_step_at_the_wrong_place_is_noticed(change, cpu):
    x = engine_step.inputs(STEP, cpu, 0)
    oracle = engine_step.oracle(STEP, x)
    (ours, _) = engine_step.providers(STEP, cpu)
    assert complaint(ours, x, oracle) is None
    slots = x.slots["launched"]
    if change == "position":
        slots.state.position.sub_(1)
    else:
        slots.cache.values[0][:, :, 3] = 0
    assert complaint(ours, x, oracle) is not None


def test_a_step_can_be_run_again_and_again(cpu):
    x = engine_step.inputs(STEP, cpu, 0)
    for provider in engine_step.providers(STEP, cpu):
        first, *others = ([part.clone() for part in provider.run(x)] for _ in range(4))
        for again, part in itertools.product(others, range(2)):
            assert torch.equal(again[part], first[part])


def test_columns_follow_from_the_time(cpu):
    shape = clip_shape(TOY, 3, "encoder")
    rows = measure_shape(bench_engine.SUITE, shape, clock.Clock(cpu), 0.02)
    mm = next(row for row in rows if row["provider"] == "ceiling: mm")
    ours = next(row for row in rows if row["provider"] == "ours")
    assert ours["ms_per_clip"] == pytest.approx(1e3 * ours["seconds"]["p50"] / 3)
    assert ours["percent_of_mm"] == pytest.approx(100 * ours["tflop_s"] / mm["tflop_s"])
    row = {"seconds": {"p50": 0.5}, "note": "", "decode_steps": 7}
    mixed = clip_shape(896, 64, "transcribe")
    found = bench_engine.columns(mixed, row)
    assert found["x_real_time"] == pytest.approx(2 * sum(mixed_seconds(896, 64)))
    goal = next(goal for goal in goals.GOALS if goal.id == "E3")
    assert goals.roofline_share({**row, **found}, []) == pytest.approx(100 * found["x_real_time"] / 9_420)
    assert goal.where({"shape": mixed.sizes()})


def test_mixed_prints_both_ratios_and_times_nothing_that_is_wrong(cpu, monkeypatch, capsys):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setattr(bench_engine, "clip_shape", lambda H, clips, mode: clip_shape(TOY, 6, mode))
    before = torch.get_num_threads()
    try:
        assert bench_engine.mixed(1, 1) == 0
        said = capsys.readouterr().out
        assert said.startswith("6 clips, 10 s of audio")
        assert [line.split()[:2] for line in said.splitlines() if "ratio" in line] == [["wall", "ratio"], ["CPU", "ratio"]]
        assert f"{max(engine_transcribe.limits(TOY, 6)) - 1} decode steps" in said
        rollout = Engine.rollout

        def wrong(self, batch, **options):
            found = rollout(self, batch, **options)
            return dataclasses.replace(found, tokens=found.tokens.flip(0))

        monkeypatch.setattr(Engine, "rollout", wrong)
        assert bench_engine.mixed(1, 1) == 1
        said = capsys.readouterr().out
        assert "nothing was timed" in said
        assert "ratio" not in said
    finally:
        torch.set_num_threads(before)
