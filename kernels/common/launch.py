"""Where Triton kernels can be launched and with which configuration.

A configuration is looked up, never searched for: results and times of a run must not depend on a timing race at its start.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

Launcher = TypeVar("Launcher", bound=Callable[..., Any])

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
"""Kernels run in Triton's interpreter, on CPU tensors. Triton reads the variable where a kernel is decorated, so it is set before Python
starts. A kernel that needs to know holds it as ``INTERPRET: tl.constexpr = tl.constexpr(launch.INTERPRET)``."""

MIN_TRITON = (3, 6)
"""The oldest Triton that the kernels are compiled with in the tests."""
MIN_ARCH = 80
"""Ampere: the first with bfloat16."""
SHARED_BYTES = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Shared memory one block may ask for, by compute capability."""

compile_for: int | None = None
"""Compute capability that kernels are compiled for instead of the device's own. Ahead-of-time tests set it, on machines without a GPU."""


@functools.cache
def triton_refusal() -> str | None:
    """Why no kernel can run in this process whatever the device; None when one can."""
    try:
        import triton
    except Exception as error:
        return f"Triton cannot be imported ({type(error).__name__}: {error}); pip install 'triton>=3.6'"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < MIN_TRITON:
        return f"Triton {triton.__version__} is older than 3.6; pip install 'triton>=3.6'"
    return None


@functools.cache
def _cuda_architecture(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


@functools.cache
def _cannot_start(index: int) -> str | None:
    """Why a kernel does not start on GPU ``index``, where Triton can be imported; it builds one, which takes a second the first time."""
    try:
        from arkfast.kernels.common import probe

        # Under a caller's fake-tensor or functional mode there would be no memory to point at.
        with _disable_current_modes(), torch.cuda.device(index):
            probe.store_one[(1,)](torch.empty(1, dtype=torch.int32, device=f"cuda:{index}"))
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"Triton cannot build or start a kernel on this GPU ({type(error).__name__}: {lines[0]})"
    return None


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def architecture(device: torch.device) -> int:
    """Compute capability × 10 + minor, as in 90 for an H200; 0 in the interpreter."""
    if compile_for is not None:
        return compile_for
    if device.type != "cuda":
        return 0
    return _cuda_architecture(_index(device))


def device_refusal(device: torch.device) -> str | None:
    """Why no kernel can run on tensors of ``device``; None when one can. Waits for nothing."""
    if compile_for is not None:
        return triton_refusal()
    if device.type == "cpu":
        if INTERPRET:
            return triton_refusal()
        return (
            "this version has no Triton kernel for tensors on the CPU (TRITON_INTERPRET=1, set before Python starts, interprets it there)"
        )
    if device.type != "cuda":
        return f"this version has no Triton kernel for tensors on {device.type}"
    if INTERPRET:
        return "TRITON_INTERPRET=1 is set, under which kernels take CPU tensors alone"
    if torch.version.hip is not None:
        return "this version has no Triton kernel for AMD GPUs"
    arch = architecture(device)
    if arch < MIN_ARCH:
        return f"the GPU's compute capability {arch // 10}.{arch % 10} is below 8.0, the least that the Triton kernels take"
    if (refusal := triton_refusal()) or torch.compiler.is_compiling():
        return refusal
    return _cannot_start(_index(device))


def on_device_of(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """A context in which kernels start on the tensor's GPU: Triton starts them on the current one, where its pointers mean nothing."""
    if tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def on_its_device(launcher: Launcher) -> Launcher:
    """A launcher that runs in ``on_device_of`` its first argument that is a tensor."""

    @functools.wraps(launcher)
    def run(*arguments: Any, **settings: Any) -> Any:
        with on_device_of(next(x for x in arguments if isinstance(x, torch.Tensor))):
            return launcher(*arguments, **settings)

    return run  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class Config:
    """How one kernel is launched."""

    num_warps: int = 4
    num_stages: int = 2
    blocks: Mapping[str, int] = field(default_factory=dict)
    """Block sizes: the kernel's constexpr arguments by name."""
    most_registers: int | None = None
    """Registers a thread that the assembler may use; None for its own choice. Said where a few less let one more program on a
    multiprocessor and cost no spill."""

    def kwargs(self) -> dict[str, int]:
        """The launch options, which go beside the kernel's arguments."""
        limit = {} if self.most_registers is None else {"maxnreg": self.most_registers}
        # Said, because its default changes from on to off in Triton 3.10, and with it the last bits of a sum.
        return {**self.blocks, **limit, "num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One line of a configuration table: the cases it is for, and the configuration."""

    config: Config
    min_arch: int = 0
    """The least compute capability × 10; 0 takes the interpreter too."""
    max_width: int | None = None
    """The widest row (H, or whatever the op's table says); None for any."""
    itemsize: int | None = None
    """Bytes of an input element; None for any."""

    def takes(self, arch: int, width: int, itemsize: int) -> bool:
        return (
            arch >= self.min_arch
            and (self.max_width is None or width <= self.max_width)
            and (self.itemsize is None or itemsize == self.itemsize)
        )


def pick(table: Sequence[Rule], *, device: torch.device, width: int = 0, dtype: torch.dtype = torch.float32) -> Config:
    """The configuration of the first rule of ``table`` that takes the case; a table's last rule takes every case."""
    arch = architecture(device)
    for rule in table:
        if rule.takes(arch, width, dtype.itemsize):
            return rule.config
    raise AssertionError(f"no configuration for compute capability {arch}, width {width}, {dtype}")
