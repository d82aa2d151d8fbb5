"""The choice of backend: what "auto" and "triton" do with and without a GPU, and what is remembered of it.

A fake CUDA tensor has a device and no values, so the choice for a GPU is tested where there is none.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from arkfast import doctor
from arkfast.kernels import topk_lse
from arkfast.kernels.common import backend, launch
from arkfast.kernels.common.launch import Config, Rule, pick

CPU = torch.zeros(1)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """A tensor on a GPU of compute capability 9.0 that Triton can use, and empty records."""
    monkeypatch.setattr(launch, "INTERPRET", False)
    monkeypatch.setattr(launch, "triton_refusal", lambda: None)
    monkeypatch.setattr(launch, "_cuda_architecture", lambda index: 90)
    monkeypatch.setattr(launch, "_cannot_start", lambda index: None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(backend, "_fallbacks", {})
    monkeypatch.setattr(backend, "_usage", {})
    with FakeTensorMode(allow_non_fake_inputs=True):
        return torch.empty(1, device="cuda:0")


def test_auto_takes_triton_for_cuda_tensors_alone(gpu):
    assert backend.resolve_backend("auto", "op", gpu) == "triton"
    assert backend.resolve_backend("auto", "op", None, CPU) == "torch"
    assert backend.resolve_backend("auto", "op") == "torch"
    assert backend.resolve_backend("torch", "op", gpu) == "torch"
    assert backend.resolve_backend("triton", "op", gpu) == "triton"
    assert backend.fallbacks() == {}
    assert backend.usage() == {"op": {"torch": 3, "triton": 2}}


def test_a_fallback_is_said_once_and_recorded(gpu):
    with pytest.warns(RuntimeWarning, match="op runs in plain torch on a GPU, .* its Triton kernel does not take float64 logits"):
        assert backend.resolve_backend("auto", "op", gpu, unfit="float64 logits") == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backend.resolve_backend("auto", "op", gpu, unfit="float64 logits")
        backend.resolve_backend("auto", "op", CPU, unfit="float64 logits")
        backend.resolve_backend("torch", "op", gpu, unfit="float64 logits")
    with pytest.warns(RuntimeWarning, match="k above 64"):
        backend.resolve_backend("auto", "op", gpu, unfit="k above 64")
    assert backend.fallbacks() == {"op": ("its Triton kernel does not take float64 logits", "its Triton kernel does not take k above 64")}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.setattr(launch, "triton_refusal", lambda: "Triton cannot be imported"), "Triton cannot be imported"),
        (lambda m: m.setattr(launch, "_cannot_start", lambda index: "Triton cannot build a kernel"), "Triton cannot build a kernel"),
        (lambda m: m.setattr(launch, "_cuda_architecture", lambda index: 75), "compute capability 7.5 is below 8.0"),
        (lambda m: m.setattr(torch.version, "hip", "6.4"), "no Triton kernel for AMD GPUs"),
        (lambda m: m.setattr(launch, "INTERPRET", True), "TRITON_INTERPRET=1 is set, under which kernels take CPU tensors alone"),
    ],
)
def test_a_gpu_without_triton_has_a_reason(gpu, monkeypatch, change, reason):
    change(monkeypatch)
    with pytest.warns(RuntimeWarning, match=reason):
        assert backend.resolve_backend("auto", "op", gpu) == "torch"
    with pytest.raises(ValueError, match=f"op: .*{reason}.*; use backend='auto'"):
        backend.resolve_backend("triton", "op", gpu)


def test_a_kernel_that_cannot_start_is_a_reason_and_no_error():
    """There is no GPU with such a number, here or anywhere."""
    reason = launch._cannot_start.__wrapped__(99)
    assert reason is not None
    assert reason.startswith("Triton cannot build or start a kernel on this GPU (")


def test_triton_is_refused_where_it_cannot_run(gpu):
    with pytest.raises(ValueError, match=r"op: this version has no Triton kernel for tensors on the CPU \(TRITON_INTERPRET=1"):
        backend.resolve_backend("triton", "op", CPU)
    with pytest.raises(ValueError, match="no Triton kernel for tensors on meta"):
        backend.resolve_backend("triton", "op", CPU.to("meta"))
    with pytest.raises(backend.UnfitError, match="op: the Triton kernel does not take float64 logits; use backend='auto'"):
        backend.resolve_backend("triton", "op", gpu, unfit="float64 logits")
    with pytest.raises(ValueError, match="op: backend must be one of 'auto', 'triton', 'torch', got 'cuda'"):
        backend.resolve_backend("cuda", "op", gpu)
    assert backend.usage() == {}


def test_usage_counts_calls_and_starts_anew():
    backend.reset_usage()
    for _ in range(3):
        topk_lse(torch.randn(2, 9), 2)
    assert backend.usage()["topk_lse"] == {"torch": 3}
    backend.reset_usage()
    assert backend.usage() == {}


def test_what_is_available_is_what_can_run(monkeypatch):
    monkeypatch.setattr(launch, "INTERPRET", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backend.available_backends() == ("torch",)
    assert backend.why_not_triton()
    monkeypatch.setattr(launch, "triton_refusal", lambda: None)
    assert backend.why_not_triton() == "no CUDA device is seen"
    monkeypatch.setattr(launch, "INTERPRET", True)
    assert backend.available_backends() == ("torch", "triton")
    monkeypatch.setattr(launch, "INTERPRET", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(launch, "device_refusal", lambda device: None)
    assert backend.available_backends() == ("triton", "torch")


def test_a_table_is_read_from_the_top(monkeypatch):
    first, second, last = Config(num_warps=1), Config(num_warps=2), Config(num_warps=8, blocks={"B": 64})
    table = (Rule(min_arch=90, max_width=1024, config=first), Rule(itemsize=2, config=second), Rule(config=last))
    device = torch.device("cpu")
    assert pick(table, device=device, width=896, dtype=torch.float32) is last
    assert pick(table, device=device, width=896, dtype=torch.bfloat16) is second
    monkeypatch.setattr(launch, "compile_for", 100)
    assert pick(table, device=device, width=896, dtype=torch.bfloat16) is first
    assert pick(table, device=device, width=2048, dtype=torch.bfloat16) is second
    assert last.kwargs() == {"B": 64, "num_warps": 8, "num_stages": 2, "enable_fp_fusion": True}
    with pytest.raises(AssertionError, match="no configuration"):
        pick(table[:1], device=device, width=2048)


def test_doctor_says_why_a_kernel_is_not_used(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(RuntimeWarning, match="k above 64"):
        backend.resolve_backend("auto", "topk_lse", gpu, unfit="k above 64")
    lines = [line.strip() for line in doctor._kernels()]
    assert lines[0].endswith("torch (auto takes the first)")
    assert lines[1:] == [
        "triton is not used: no CUDA device is seen",
        "topk_lse has run in torch on a GPU: its Triton kernel does not take k above 64",
    ]
