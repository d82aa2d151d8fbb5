"""What a run says while it goes on, and how its arithmetic is counted."""

import json
from dataclasses import replace

import pytest
import torch

from arkfast.models.arkasr.cost import ArkasrCost
from arkfast.records import Batch
from arkfast.testing import synthetic_speech, tiny_checkpoint, tiny_model, write_wav
from arkfast.train.config import TrainConfig, profiled_steps
from arkfast.train.logging.run_log import RunLog, progress
from arkfast.train.throughput import peak
from arkfast.train.trainer import Trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three supervised steps with TensorBoard and a trace of the second."""
    root = tmp_path_factory.mktemp("world")
    tiny_checkpoint(root / "student", seed=1)
    write_wav(root / "a.wav", synthetic_speech(0.6, seed=1))
    (root / "train.jsonl").write_text(json.dumps({"audio": "a.wav", "text": "one two", "id": "a"}) + "\n")
    Trainer(TrainConfig(
        stage="sft", student_model=root / "student", train_data=root / "train.jsonl", output_dir=root / "run", max_steps=3,
        dataloader_num_workers=0, num_threads=1, device="cpu", tensorboard=True, profile_steps="2:2",
    )).run()  # fmt: skip
    return root / "run"


def test_tensorboard_has_the_numbers_of_the_log(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "grad_norm", "lr", "tokens_per_second"):
        points = [(point.step, point.value) for point in events.Scalars(name)]
        assert points == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows]
    assert "stage" not in events.Tags()["scalars"]


def test_the_trace_holds_the_steps_that_were_asked_for(run):
    trace = json.loads((run / "profile" / "rank0.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"]]
    assert any("AdamW" in str(name) for name in names)
    assert sum(str(name).startswith("Optimizer.step#AdamW") for name in names) == 1


def test_the_bar_says_how_fast_and_where_the_time_goes():
    record = {"loss": 1.25, "tokens_per_second": 1234.4, "audio_seconds_per_second": 56.78, "mfu": 0.412, "time_per_step": 2.0,
              "rollout_time_max": 1.0, "backward_max": 0.5, "data_wait_max": 0.001}  # fmt: skip
    assert progress(record) == "loss 1.2500 1234 tok/s 56.8 audio-s/s MFU 41% rollout 50% backward 25%"
    assert progress({"loss": 1.0, "time_per_step": 0.1}) == "loss 1.0000", "a step that was not measured in full"


def test_a_log_without_tensorboard_installed_says_what_to_install(tmp_path, monkeypatch):
    import sys

    from arkfast.records import InputError

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"--tensorboard: .*pip install -e '\.\[train\]'"):
        RunLog(tmp_path / "m.jsonl", start_step=0, total_steps=1, print_every=1, tensorboard=tmp_path / "tb")


def test_gathering_weights_for_a_checkpoint_warns_of_nothing(tmp_path):
    """A warning here comes once from every process of a run."""
    import warnings

    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    from arkfast.train.checkpoints.export import whole_weights

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        weight = torch.arange(6.0).reshape(3, 2)
        sharded = distribute_tensor(weight, init_device_mesh("cpu", (1,)), [Shard(0)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            whole = whole_weights({"w": sharded}, {}, torch.float32, keep=True)
        assert torch.equal(whole["w"], weight)
    finally:
        dist.destroy_process_group()


def test_steps_to_profile():
    assert profiled_steps("") is None
    assert profiled_steps("5:7") == (5, 7)
    for text in ("5", "7:5", "0:2", "a:b", "1:"):
        with pytest.raises(ValueError, match="--profile_steps: expected first:last"):
            profiled_steps(text)


def test_operations_are_those_that_torch_counts():
    """The count of a forward pass against torch's own counter, within what is left out: convolutions, and the causal half of scores."""
    from torch.utils.flop_counter import FlopCounterMode

    from arkfast.data import pad_right
    from arkfast.models.arkasr.prompt import Prompt

    model = tiny_model(seed=1, num_hidden_layers=3, intermediate_size=384, attn_implementation="eager")
    frames = [160, 160]
    ids, lens = pad_right([Prompt(prefix=(91, 92), audio_id=90, suffix=(93, 5, 6, 94)).ids(n) for n in frames])
    batch = Batch(ids=("a", "b"), keys=torch.arange(2), mel=torch.zeros(2, 128, 160), mel_lens=torch.tensor(frames), input_ids=ids,
                  prompt_lens=lens)  # fmt: skip
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, audios=batch.mel, audio_lens=batch.mel_lens, use_cache=False)
    total = counter.get_total_flops()
    convolutions = sum(count for op, count in counter.get_flop_counts()["Global"].items() if "conv" in str(op))
    ours = ArkasrCost(model).forward(batch, 0.0, head=False) + 2 * float(lens.sum()) * 97 * 48
    assert ours == pytest.approx(total - convolutions, rel=0.06)
    once = ArkasrCost(model).forward(batch, 10.0, head=True) - ArkasrCost(model).forward(batch, 10.0, head=False)
    assert once == 2 * 10 * 97 * 48
    assert peak(torch.device("cpu")) is None


def test_a_teacher_reads_a_prompt_once_for_all_its_rollouts():
    """Its operations against those that torch counts in a score of two answers a prompt; long ones, for the last is not run."""
    from torch.utils.flop_counter import FlopCounterMode

    from arkfast.data import pad_right
    from arkfast.distill.teachers.arkasr import ArkasrTeacher
    from arkfast.models.arkasr.prompt import Prompt
    from arkfast.records import AllowedTokens, Rollout

    model = tiny_model(seed=1, num_hidden_layers=3, intermediate_size=384, attn_implementation="eager")
    frames, answer = [640, 640], 30
    ids, lens = pad_right([Prompt(prefix=(91, 92), audio_id=90, suffix=(93, 5, 6, 94)).ids(n) for n in frames])
    batch = Batch(ids=("a", "b"), keys=torch.arange(2), mel=torch.zeros(2, 128, 640), mel_lens=torch.tensor(frames), input_ids=ids,
                  prompt_lens=lens)  # fmt: skip
    rollout = Rollout(tokens=torch.ones(4, answer, dtype=torch.int64), lens=torch.full((4,), answer), total=4 * answer,
                      stopped=torch.zeros(4, dtype=torch.bool), owner=torch.tensor([0, 0, 1, 1]),
                      topk_ids=torch.zeros(4 * answer, 1, dtype=torch.int32))  # fmt: skip
    teacher = ArkasrTeacher(model, allowed=AllowedTokens(ranges=((0, 90),), stop_ids=(95,)), top_k=1)
    with FlopCounterMode(display=False) as hearing:
        model.get_audio_features(batch.mel, batch.mel_lens)
    with FlopCounterMode(display=False) as counter:
        teacher.score(batch, rollout)
    cost, unheard = ArkasrCost(model), replace(batch, mel_lens=torch.zeros(2))  # the decoder's operations alone
    ours = cost.forward(unheard, 4.0 * answer, rollouts=2, head=True)
    assert ours == pytest.approx(counter.get_total_flops() - hearing.get_total_flops(), rel=0.06)
    again = cost.forward(unheard, 4.0 * answer, rollouts=2, head=False) + 2 * 4 * answer * 97 * 48
    assert again - ours == pytest.approx(cost.forward(unheard, 0.0, head=False)), "what a second reading of the prompts would cost"


def test_bad_rows_of_all_ranks_are_judged_together():
    from types import SimpleNamespace

    from arkfast.records import InputError
    from arkfast.train.logging.phases import Phases
    from arkfast.train.logging.recorder import Recorder

    config = TrainConfig(stage="sft", student_model="s", train_data="t", output_dir="o", on_bad_audio="skip:0.1")
    two = SimpleNamespace(world=2, rank=0, device=torch.device("cpu"), gather=lambda own: [own, ["of_rank_1.wav"]])
    recorder = Recorder(config, two, rows=10, student=ArkasrCost(tiny_model()), teacher=None, phases=Phases(two.device))
    assert recorder.judge([], 4) == ["of_rank_1.wav"]
    assert recorder.judge(["a.wav"], 14) == ["a.wav", "of_rank_1.wav"], "the second epoch has begun, so two of twenty are within the limit"
    with pytest.raises(InputError, match=r"2 clips so far are bad, over the limit of skip:0.1; the last: of_rank_1.wav"):
        recorder.judge(["a.wav"], 4)
    recorder.bad_rows = 2
    with pytest.raises(InputError, match=r"3 clips so far are bad"):
        recorder.judge([], 14)


def test_metrics_of_two_ranks_are_added_up_and_each_time_is_the_longest():
    from types import SimpleNamespace

    from arkfast.distill import LossSum
    from arkfast.train.logging.step_metrics import StepMetrics

    sent = []

    def rank(number, total):
        parallel = SimpleNamespace(world=2, rank=number, device=torch.device("cpu"), total=total)
        return StepMetrics(("asr_loss", "opd_terminal_rows"), ("audio_seconds",), parallel)

    def loss(total, count, ends):
        scalar = torch.tensor
        metrics = {"asr_loss": (scalar(total), scalar(count)), "opd_terminal_rows": (scalar(ends), scalar(0.0))}
        return LossSum(total=scalar(total), count=scalar(count), positions=scalar(count), metrics=metrics)

    def keep(packed):
        sent.append(packed.clone())
        return packed

    first, second = rank(0, keep), rank(1, lambda packed: packed + sent[0])
    packed = first.pack([loss(6.0, 3.0, 1.0), loss(2.0, 1.0, 2.0)]).tolist()
    first.total(packed, 4.0, {"audio_seconds": 1.5}, {"rollout": 2.0, "teacher": 1.0})
    found = second.total(second.pack([]).tolist(), 0.0, {"audio_seconds": 0.5}, {"rollout": 0.5, "encode": 3.0})
    assert found["asr_loss"] == 2.0, "a rank that was idle adds nothing"
    assert found["opd_terminal_rows"] == 3.0, "a count of 0 makes it a sum"
    assert found["audio_seconds"] == 2.0
    assert (found["rollout_time_max"], found["teacher_time_max"], found["teacher_time_min"]) == (2.0, 1.0, 0.0)
    assert found["compute_max"] == 3.5, "the slower rank's phases together, not each phase's slowest"
    assert (found["local_valid_count_min"], found["local_valid_count_max"]) == (0, 4)


def test_quiet_hides_no_warning_of_a_resume(run, tmp_path, capsys):
    """A damaged checkpoint that is passed over is said, whatever is not."""
    from shutil import copytree

    root = run.parent
    copytree(run, tmp_path / "run")
    config = TrainConfig(
        stage="sft", student_model=root / "student", train_data=root / "train.jsonl", output_dir=tmp_path / "run", max_steps=4,
        dataloader_num_workers=0, num_threads=1, device="cpu", quiet=True, resume_from_checkpoint="auto",
    )  # fmt: skip
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    copytree(checkpoint, checkpoint.with_name("global_step_9"))
    (checkpoint.with_name("global_step_9") / "model.safetensors").write_bytes(b"")
    capsys.readouterr()
    Trainer(config).run()
    said = capsys.readouterr()
    assert said.out == ""
    assert "global_step_9" in said.err
    assert "steps are done" not in said.err
