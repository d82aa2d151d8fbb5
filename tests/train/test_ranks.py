"""Several processes train as one does: same losses, same gradients, same weights, whatever their number, and a resume may change it."""

import json

import pytest
import torch
from rank_runs import CLIPS, ONE, PART, alone, assert_same_first_gradients, assert_same_run, log, losses, make_world, together
from safetensors.torch import load_file

from arkfast.models import load_model
from arkfast.train.rollout_copy import decide


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


COPY = {"max_steps": 4, "learning_rate": 3e-3, "calibration_batches": 0}
"""Steps so large that the next rollouts are other ones."""
APART = {"student_model": "apart", "max_steps": 3, "learning_rate": 1e-3}


LARGE = 1 << 40
COPIES = {
    "copy_off": {"rollout_copy": "off"},
    "copy_on": {"rollout_copy": "on"},
    "copy_full": {"rollout_copy": "on", "sharding": "full"},
    "copy_adapters": {"rollout_copy": "on", "lora_rank": 4},
    "copy_no_adapters": {"rollout_copy": "off", "lora_rank": 4},
    "copy_room": {"free": [LARGE, LARGE]},
    "copy_no_room": {"free": [LARGE, 1000]},
    "copy_stale": {"rollout_copy": "on", "stale": True},
}


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """One process and two take the same steps, and each goes on from where the other was killed. One launch: starting takes longest."""
    root = tmp_path_factory.mktemp("runs")
    alone(world, root / "one", **ONE)
    alone(world, root / "one_then_two", halt=5, **PART, **ONE)
    alone(world, root / "apart_one", **APART, **ONE)
    alone(world, root / "copy_one", **COPY, **ONE)
    together(world, root, [
        *((name, {**COPY, **options}) for name, options in COPIES.items()),
        ("two", {}),
        ("two_then_two", {"halt": 5, **PART}),
        ("two_then_two", {"resume_from_checkpoint": "latest", **PART}),
        ("two_then_one", {"halt": 5, "async_save": True, **PART}),
        ("one_then_two", {"resume_from_checkpoint": "auto", **PART}),
        ("whole", PART),
        ("apart_two", APART),
        ("bad", {"train_data": world / "bad.jsonl", "on_bad_audio": "skip:0.2", "max_steps": 4, "log_freq": 10}),
    ])  # fmt: skip
    alone(world, root / "two_then_one", resume_from_checkpoint="auto", **PART, **ONE)
    return root


def test_two_ranks_train_as_one_process_does(runs):
    assert_same_run(runs / "one", runs / "two")
    assert_same_first_gradients(runs / "one", runs / "two")
    assert len(losses(runs / "two")) == 20
    start = losses(runs / "two")[0]
    assert losses(runs / "two")[-1][2] < start[2], "it learns"


def rollouts(out, ranks=2):
    """The tokens of each step by clip, whichever rank made them; a rank without a clip decodes one of its own, which no other has."""
    found = [json.loads((out / f"rollouts{rank}.json").read_text()) for rank in range(ranks)]
    if ranks == 1:  # two micro-batches a step
        found = [found[0][first::2] for first in (0, 1)]
    return [{clip: row for part in parts for clip, row in part.items() if clip != "idle"} for parts in zip(*found, strict=True)]


def test_rollouts_with_a_copy_of_the_decoder_are_those_of_whole_weights(runs):
    """Of a model in one process, of weights that are gathered for each rollout, and where memory has no room for a copy on one rank."""
    want = rollouts(runs / "copy_one", ranks=1)
    assert len({token for clips in want for row in clips.values() for token in row}) >= 10
    for name in ("copy_off", "copy_on", "copy_full", "copy_room", "copy_no_room"):
        assert rollouts(runs / name) == want, name
        assert_same_first_gradients(runs / "copy_one", runs / name)
    assert rollouts(runs / "copy_adapters") == rollouts(runs / "copy_no_adapters")


def test_a_copy_that_is_not_refreshed_would_be_seen(runs):
    """Only the rollouts of the first weights are then right, so the test above shows that steps reach the copy."""
    want, stale = rollouts(runs / "copy_on"), rollouts(runs / "copy_stale")
    assert stale[0] == want[0]
    assert stale[1:] != want[1:]


def test_the_log_says_whether_there_is_a_copy(runs):
    said = (runs / "rank0.log").read_text()
    assert "a copy of the decoder of their own, refreshed once a step (--rollout_copy on was given)" in said
    assert "a copy of the decoder of their own, refreshed once a step (it takes 0.0 GB of" in said
    assert "no copy is kept (1 of the processes have no room for it)" in said
    assert "no copy is kept (a CPU captures no steps)" in said
    assert "no copy is kept (--rollout_copy off was given)" in said


def test_a_copy_is_kept_where_memory_allows_it():
    free = {"choice": "auto", "copy": 100, "state": 50}
    assert decide(**free, free=450)[0]
    assert not decide(**free, free=449)[0]
    assert not decide(**free, free=0)[0]
    assert not decide(**free, free=None)[0]
    assert decide("on", copy=100, state=50, free=0)[0]
    assert not decide("off", copy=1, state=0, free=1 << 40)[0]


def test_a_head_beside_the_table_that_it_is_said_to_be_trains_and_is_written_apart_on_any_number_of_processes(runs):
    assert_same_run(runs / "apart_one", runs / "apart_two")
    step = "checkpoints/global_step_3"
    for run in ("apart_one", "apart_two"):
        for folder in (runs / run / "last", runs / run / step):
            written = load_file(folder / "model.safetensors")
            assert not torch.equal(written["lm_head.weight"], written["model.embed_tokens.weight"])
            assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
            assert torch.equal(load_model(folder).lm_head.weight, written["lm_head.weight"])


def test_a_resume_on_as_many_ranks_repeats_every_number(runs):
    assert losses(runs / "two_then_two") == losses(runs / "whole")
    whole, resumed = (load_file(runs / name / "last" / "model.safetensors") for name in ("whole", "two_then_two"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_resume_on_more_or_fewer_ranks_goes_on_as_if_nothing_had_happened(runs):
    assert_same_run(runs / "whole", runs / "two_then_one")
    assert_same_run(runs / "whole", runs / "one_then_two")


def test_a_checkpoint_of_two_ranks_is_a_model_too(runs):
    folder = runs / "two_then_two" / "checkpoints" / "global_step_8"
    assert sorted(path.name for path in (folder / "optimizer").iterdir()) == [
        f"shard-0000{i}-model-00001-of-00001.safetensors" for i in (1, 2)
    ]
    last = load_file(runs / "two_then_two" / "last" / "model.safetensors")
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == last.keys()
    assert all(torch.equal(weights[name], last[name]) for name in last)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["ArkasrForConditionalGeneration"]
    assert json.loads((folder / "files.json").read_text())["processes"] == 2


def test_only_logged_steps_are_measured_in_full_and_for_all_ranks(runs, world):
    rows = log(runs / "two")
    assert [row["step"] for row in rows if "opd_loss" in row] == [5, 10, 15, 20]
    for row, one in zip(rows, log(runs / "one"), strict=True):
        for name in ("opd_loss", "opd_valid_topk_mean", "generated_tokens_mean", "audio_seconds") if "opd_loss" in row else ():
            assert row[name] == pytest.approx(one[name], rel=1e-5)


def test_a_bad_clip_is_listed_before_the_run_ends_however_seldom_steps_are_logged(runs):
    (listed,) = (row["bad_audio"] for row in log(runs / "bad") if "bad_audio" in row)
    assert len(listed) == 1
    assert "bad.jsonl:8: " in listed[0]
    assert json.loads((runs / "bad" / "checkpoints" / "global_step_4" / "trainer_state.json").read_text())["bad_rows"] == 1


def test_collectives_of_a_step_are_few_and_none_while_decoding(runs):
    """Seven units (encoder layers, adapter, encoder, decoder layers, root) are gathered and reduced once; four numbers are added up."""
    found = json.loads((runs / "two" / "collectives.json").read_text())
    steps, logged = found["steps"], 4
    count, size = found["count"], found["bytes"]
    for kind in ("all-gather", "reduce-scatter", "all-reduce"):
        print(f"a step on two ranks: {count[kind] / steps:.2f} {kind}s of {size[kind] / steps:.0f} bytes in all")
    assert found["rollout"] == {}
    assert count["all-gather"] == count["reduce-scatter"] == 7 * steps
    assert count["all-reduce"] == 20 + logged, "counted from the first step's on; a logged step has a second"
    parameters = sum(tensor.numel() for tensor in load_file(runs / "two" / "last" / "model.safetensors").values())
    assert size["all-gather"] / steps == pytest.approx(4 * parameters, rel=0.02), "the whole model once a step, in float32"


@pytest.mark.slow
def test_every_way_to_share_a_step_is_the_same_step(world, tmp_path):
    """Accumulation, freeing early, hybrid groups, recomputed layers, frozen parts, and a rank that idles in the last round of a step."""
    kinds = {
        "accumulated": ({"gradient_accumulation_steps": 2}, {"micro_batches_per_step": 4}),
        "full": ({"sharding": "full", "gradient_accumulation_steps": 2}, {"micro_batches_per_step": 4}),
        "hybrid": ({"shard_group_size": 1}, ONE),
        "recomputed": ({"sharding": "full", "activation_checkpointing": True}, ONE),
        "frozen": ({"freeze": ["audio_encoder", "adapter"], "sharding": "full"}, {"freeze": ["audio_encoder", "adapter"], **ONE}),
        "idle": ({"micro_batches_per_step": 3}, {"micro_batches_per_step": 3}),
        "idle_full": ({"micro_batches_per_step": 3, "sharding": "full"}, {"micro_batches_per_step": 3}),
        "sft": ({"stage": "sft", "teacher_model": None, "ctc_weight": 0.5, "micro_batches_per_step": 3, "sharding": "full"},
                {"stage": "sft", "teacher_model": None, "ctc_weight": 0.5, "micro_batches_per_step": 3}),
        "td": ({"stage": "td", "ema_decay": 0.9}, {"stage": "td", "ema_decay": 0.9, **ONE}),
    }  # fmt: skip
    together(world, tmp_path, [(name, many) for name, (many, _) in kinds.items()])
    for name, (_, one) in kinds.items():
        alone(world, tmp_path / f"{name}_alone", **one)
        # The sum of two losses, cross-entropy and CTC, rounds more than one: 1.1e-5 was seen.
        assert_same_run(tmp_path / f"{name}_alone", tmp_path / name, key_biases=2e-5 if name == "sft" else 1e-5)
        assert_same_first_gradients(tmp_path / f"{name}_alone", tmp_path / name)
        assert json.loads((tmp_path / name / "collectives.json").read_text())["rollout"] == {}
    ema, last = (load_file(tmp_path / "td" / name / "model.safetensors") for name in ("ema", "last"))
    assert any(not torch.equal(ema[name], last[name]) for name in ema)


@pytest.mark.slow
def test_three_ranks_in_bfloat16_measure_wer_and_resume(world, tmp_path):
    """Shards of uneven size, a compute precision other than the masters', evaluation over ranks of unequal work."""
    options = {"model_dtype": "bfloat16", "eval_data": world / "train.jsonl", "eval_freq": 4, **PART}
    together(world, tmp_path, [("whole", options), ("part", {**options, "halt": 5}),
                               ("part", {**options, "resume_from_checkpoint": "auto"})], ranks=3)  # fmt: skip
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")
    evaluations = [{**row, "eval_seconds": None} for row in log(tmp_path / "whole") if "eval_wer" in row]
    assert [row["step"] for row in evaluations] == [4, 8]
    assert [{**row, "eval_seconds": None} for row in log(tmp_path / "part") if "eval_wer" in row] == evaluations
    assert evaluations[0]["eval_utterances"] == CLIPS


def test_gates_on_two_ranks_leave_the_run_as_it_is(world, tmp_path):
    """The first look has more clips than one rank and fewer than both take; gates warn, so that a random student goes on."""
    more = {"max_steps": 4, "calibration_batches": 3, "eval_data": world / "train.jsonl"}
    together(
        world, tmp_path, [("off", {**more}), ("warn", {**more, "gates": "warn"}), ("full", {**more, "gates": "warn", "sharding": "full"})]
    )
    assert losses(tmp_path / "off") == losses(tmp_path / "warn")
    assert_same_run(tmp_path / "warn", tmp_path / "full")
    said = (tmp_path / "rank0.log").read_text()
    assert said.count("warning: preflight: ") >= 2
    assert "rollouts do not end within --asr_opd_max_new_tokens 8" in said
    assert "warning: preflight: " not in (tmp_path / "rank1.log").read_text()
