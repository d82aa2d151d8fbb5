"""Which implementation of an op runs, and what has run so far."""

from __future__ import annotations

import threading
import warnings
from typing import Literal

import torch

from arkfast.kernels.common import launch
from arkfast.kernels.common.checks import check_choice

Backend = Literal["auto", "triton", "torch"]

_fallbacks: dict[str, list[str]] = {}
_usage: dict[str, dict[str, int]] = {}
_lock = threading.Lock()


class UnfitError(ValueError):
    """``backend="triton"`` was asked for and the op's kernel does not take such arguments; "auto" runs them in torch."""


def available_backends() -> tuple[str, ...]:
    """The backends that can run here, the one that "auto" prefers first: ("triton", "torch") with a GPU that the kernels support,
    ("torch", "triton") in Triton's interpreter, else ("torch",)."""
    if launch.INTERPRET:
        return ("torch", "triton") if launch.triton_refusal() is None else ("torch",)
    return ("torch",) if why_not_triton() else ("triton", "torch")


def why_not_triton() -> str | None:
    """Why "auto" cannot choose Triton on this machine; None when it can."""
    if not torch.cuda.is_available():
        return launch.triton_refusal() or "no CUDA device is seen"
    return launch.device_refusal(torch.device("cuda"))


def resolve_backend(backend: str, op: str, *tensors: torch.Tensor | None, unfit: str | None = None) -> Literal["triton", "torch"]:
    """The backend that runs a call, which is counted for ``usage``. Call it once per call of a public op, after the arguments' checks.

    "auto" is Triton for CUDA tensors where it is available and fits, else torch; on a CUDA tensor a fallback is recorded and warned of once
    per op and reason. "triton" is Triton or an error.

    Args:
        backend: "auto", "triton" or "torch".
        op: the public function's name.
        tensors: the op's tensors, of which the first that is not None tells the device; none means the CPU.
        unfit: why the op's kernel does not take these arguments, as in "float64 inputs"; None when it does, or when no kernel runs anyway.

    Raises:
        UnfitError: "triton" was asked for and ``unfit`` says that the kernel does not take the arguments.
        ValueError: for an unknown name; "triton" was asked for where none can run, with the reason.
    """
    check_choice(op, "backend", backend, ("auto", "triton", "torch"))
    device = next((tensor.device for tensor in tensors if tensor is not None), torch.device("cpu"))
    chosen: Literal["triton", "torch"] = "torch"
    if backend == "triton":
        if refusal := launch.device_refusal(device):
            raise ValueError(f"{op}: {refusal}; use backend='auto' or backend='torch'")
        if unfit:
            raise UnfitError(f"{op}: the Triton kernel does not take {unfit}; use backend='auto' or backend='torch'")
        chosen = "triton"
    elif backend == "auto" and device.type == "cuda":
        reason = launch.device_refusal(device) or (unfit and f"its Triton kernel does not take {unfit}")
        if reason:
            _record(op, reason)
        else:
            chosen = "triton"
    count(op, chosen)
    return chosen


def count(op: str, backend: str) -> None:
    """Adds a call of ``op`` to ``usage``; ``resolve_backend`` does so for a public op. Calls replayed by a CUDA graph are not seen."""
    # While torch.compile traces, a counter that changes would be a reason to compile again at every call.
    if torch.compiler.is_compiling():
        return
    calls = _usage.get(op)
    if calls is None:
        with _lock:
            calls = _usage.setdefault(op, {})
    calls[backend] = calls.get(backend, 0) + 1


def usage() -> dict[str, dict[str, int]]:
    """op → backend → number of calls since the start or ``reset_usage``."""
    with _lock:
        return {op: dict(calls) for op, calls in sorted(_usage.items())}


def reset_usage() -> None:
    """Starts the counting anew; recorded fallbacks stay."""
    with _lock:
        _usage.clear()


def fallbacks() -> dict[str, tuple[str, ...]]:
    """op → why calls of it with CUDA tensors ran in torch, in order of appearance; empty where every call ran in its kernel."""
    with _lock:
        return {op: tuple(reasons) for op, reasons in sorted(_fallbacks.items())}


def _record(op: str, reason: str) -> None:
    if torch.compiler.is_compiling() or reason in _fallbacks.get(op, ()):
        return
    with _lock:
        reasons = _fallbacks.setdefault(op, [])
        if reason in reasons:
            return
        reasons.append(reason)
    warnings.warn(f"{op} runs in plain torch on a GPU, slower than its kernel would: {reason}", RuntimeWarning, stacklevel=4)
