"""``--deterministic``: the settings that it reaches, which kernels it leaves, and runs that agree to the bit, resumed or not."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from arkfast.device import CUDNN, WORKSPACE, be_deterministic
from arkfast.engine import Engine
from arkfast.engine.graphs import bucket
from arkfast.engine.sampling import before, restrict
from arkfast.kernels import sparse_weight_grad
from arkfast.records import AllowedTokens, InputError
from arkfast.testing import synthetic_speech, tiny_checkpoint, tiny_model, write_wav
from arkfast.train.config import TrainConfig
from arkfast.train.models import LoadedStudent
from arkfast.train.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process's own settings afterwards."""
    monkeypatch.setenv(WORKSPACE, "")
    monkeypatch.delenv(WORKSPACE)
    monkeypatch.delenv(CUDNN, raising=False)
    before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before)
    torch.backends.cudnn.benchmark = benchmark


@pytest.fixture
def deterministic(restored: None) -> None:
    be_deterministic()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    tiny_checkpoint(root / "student", seed=1)
    tiny_checkpoint(root / "teacher", seed=2)
    rows = []
    for i in range(5):
        write_wav(root / f"{i}.wav", synthetic_speech(0.4 + 0.13 * i, seed=i))
        rows.append(json.dumps({"audio": f"{i}.wav", "text": "one two", "id": f"clip{i}", "language": "en"}) + "\n")
    (root / "train.jsonl").write_text("".join(rows))
    return root


def config(world: Path, out: Path, **overrides: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "student_model": world / "student", "teacher_model": world / "teacher", "train_data": world / "train.jsonl", "output_dir": out,
        "per_device_train_batch_size": 2, "max_steps": 6, "learning_rate": 1e-3, "asr_opd_max_new_tokens": 6, "rollout_temperature": 1.0,
        "rollout_top_p": 0.9, "gates": "off", "dataloader_num_workers": 0, "calibration_batches": 0, "seed": 3, "num_threads": 1,
        "device": "cpu", "deterministic": True,
    }  # fmt: skip
    return TrainConfig(**{**values, **overrides})


def outcome(out: Path) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["loss"], row["grad_norm"]) for row in rows if "loss" in row], load_file(out / "last" / "model.safetensors")


def check_runs(world: Path, folder: Path, halted: Any, **options: Any) -> None:
    """Two runs, and one that is abandoned after its fourth step and resumed from its third."""
    Trainer(config(world, folder / "a", **options)).run()
    Trainer(config(world, folder / "b", **options)).run()
    halted(Trainer(config(world, folder / "c", save_freq=3, **options)), 4)
    Trainer(config(world, folder / "c", save_freq=3, resume_from_checkpoint="auto", **options)).run()
    losses, weights = outcome(folder / "a")
    assert len(losses) == 6
    assert len(set(losses)) == 6
    for other in ("b", "c"):
        theirs, tensors = outcome(folder / other)
        assert theirs == losses
        assert tensors.keys() == weights.keys()
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in weights.items())


@pytest.fixture
def halted() -> Any:
    def run(trainer: Trainer, after: int) -> None:
        step = trainer._after_step

        def watched() -> None:
            step()
            if trainer._state.step == after:
                raise KeyboardInterrupt

        trainer._after_step = watched  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            trainer.run()

    return run


# What is asked of PyTorch and of cuBLAS.


def test_every_setting_is_reached(restored: None) -> None:
    torch.backends.cudnn.benchmark = True
    be_deterministic()
    assert os.environ[WORKSPACE] == ":4096:8"
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled(), "attention's backward pass is in a fixed order only without it"
    assert not torch.backends.cudnn.benchmark
    mine = {WORKSPACE: ":16:8"}
    be_deterministic(mine)
    assert mine == {WORKSPACE: ":16:8"}


@pytest.mark.parametrize(
    ("environment", "started", "message"),
    [
        (
            {WORKSPACE: ":0:0"},
            False,
            f"--deterministic: {WORKSPACE}=:0:0 lets products add up in any order; unset it, or set it to :4096:8 or",
        ),
        ({CUDNN: "1"}, False, f"--deterministic: {CUDNN}=1 asks for cuDNN's attention"),
        ({}, True, f"--deterministic: a GPU is in use by this process already; set {WORKSPACE}=:4096:8 before it starts"),
    ],
)
def test_what_cannot_hold_is_refused(
    restored: None, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], started: bool, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
    with pytest.raises(InputError, match=message):
        be_deterministic(environment)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_gpu_that_is_in_use_is_no_trouble_where_cublas_was_told_before(restored: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    be_deterministic({WORKSPACE: ":4096:8"})
    assert torch.are_deterministic_algorithms_enabled()


def test_the_ctc_term_is_refused_on_a_gpu_alone(world: Path, tmp_path: Path) -> None:
    own = SimpleNamespace(config=config(world, tmp_path, stage="sft", ctc_weight=0.5), n_mels=128)
    with pytest.raises(InputError, match="--ctc_weight: PyTorch's CTC loss has no deterministic gradient on a GPU"):
        LoadedStudent._ctc_head(own, torch.device("cuda", 0))  # type: ignore[arg-type]


# Our own operations.


def test_no_kernel_adds_by_atomics_but_the_one_that_is_refused(deterministic: None) -> None:
    """Floats that are added in no fixed order differ between runs; bits that are set do not."""
    found = [
        (path.parent.name, call)
        for path in sorted((ROOT / "kernels").rglob("*.py"))
        for call in re.findall(r"tl\.atomic_(\w+)", path.read_text(encoding="utf-8"))
    ]
    assert sorted(set(found)) == [("row_topk", "or"), ("sparse_grad", "add")]
    grad, ids, hidden = torch.ones(3, 2), torch.zeros(3, 2, dtype=torch.int32), torch.ones(3, 4)
    assert sparse_weight_grad(grad, ids, hidden, 5)[0].tolist() == [6.0] * 4
    with pytest.raises(RuntimeError, match="mode='atomic' adds in no fixed order"):
        sparse_weight_grad(grad, ids, hidden, 5, mode="atomic")


def test_the_ids_that_a_draw_may_take_are_the_same_by_fixed_point_sums(restored: None) -> None:
    scores = 4 * torch.randn(64, 1_000, generator=torch.Generator().manual_seed(0))
    top_k, top_p = torch.zeros(64, dtype=torch.int64), torch.full((64,), 0.9)
    top_p[0], top_p[1] = 1.0, 1e-9
    usual = restrict(scores, top_k, top_p)
    be_deterministic()
    fixed = restrict(scores, top_k, top_p)
    assert torch.equal(usual, fixed)
    assert torch.isfinite(fixed[1]).sum() == 1, "the best always stays"
    p = scores.softmax(-1)
    exact = p.double().cumsum(-1) - p.double()
    assert torch.allclose(before(p), exact, atol=1e-9, rtol=0)


def test_a_captured_step_has_as_many_rows_whatever_came_before(deterministic: None, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_model(), allowed=AllowedTokens(ranges=((0, 90),), stop_ids=(95,)))
    for first, rows in ((37, 37), (64, 37), (70, 65)):
        engine.close()
        for asked in (first, rows):
            slots = engine._reserve(rows=asked, length=64, new=8)
        assert bucket(rows, slots.cache.rows) == bucket(rows, 10_000)
        assert slots.most == rows


# Whole runs.


def test_two_runs_and_a_resumed_one_agree_to_the_bit(world: Path, tmp_path: Path, restored: None, halted: Any) -> None:
    """Uninitialised memory is filled with NaN meanwhile, so that none of it is read either."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    check_runs(world, tmp_path, halted)
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_two_runs_and_a_resumed_one_agree_to_the_bit_on_a_gpu(world: Path, tmp_path: Path, restored: None, halted: Any) -> None:
    os.environ.setdefault(WORKSPACE, ":4096:8")  # earlier tests of this process have used the GPU
    check_runs(world, tmp_path, halted, device="cuda")
