"""Compiles the kernels that an op launches, for GPUs that are not here, and reads what they need. Knows Triton's launch path; knows no op.

An op runs as it would on a GPU, with CPU tensors in place of CUDA ones: it checks, allocates and looks up its configuration for the wanted
architecture. Each launch is compiled instead of started, with the specialisations (16-divisible arguments, arguments equal to 1) that
Triton gives to such a call. Values are never looked at: no op may.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from arkfast.kernels.common import launch

ARCHITECTURES = (80, 89, 90, 100, 120)
DISASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
"""Comes with Triton."""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What one launch of a kernel needs on one architecture."""

    kernel: str
    arch: int
    constants: str
    """The constexpr arguments and warps that tell launches of one kernel apart."""
    registers: int
    """Per thread."""
    spilled: int
    """Bytes a thread stores to local memory because registers ran out."""
    shared: int
    """Bytes of shared memory a block."""
    listing: Listing | None
    """Its instructions; None unless they were asked for, since the disassembler takes a second to start."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What the disassembler shows of a kernel."""

    whole: int
    """Instructions, without the padding at the end."""
    loop: int
    """Instructions of its longest loop, branches within it included whether they are taken or not; 0 without a loop."""
    load: int
    """Bits of its widest load from global memory."""
    aside: int
    """Stores to local memory. Triton's own call of the assembler may put a word aside where that of ``resources`` does not."""


class Driver:
    """Stands in for Triton's driver: names a target and has no device."""

    launcher_cls = None

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        # Compiled kernels are cached by device: one number for each architecture keeps them apart.
        return self.arch

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu

    def map_python_to_cpp_type(self, name: str) -> str:
        return name

    @staticmethod
    def is_active() -> bool:
        return True


@contextmanager
def compiling_for(arch: int) -> Iterator[list[tuple[JITFunction, Any, dict[str, Any]]]]:
    """Launches inside are compiled for ``arch`` and collected as (function, compiled kernel, keyword arguments)."""
    launches: list[tuple[JITFunction, Any, dict[str, Any]]] = []
    run, active = JITFunction.run, getattr(driver, "_active", None)

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append((self, run(self, *args, grid=grid, warmup=True, **kwargs), kwargs))

    JITFunction.run, launch.compile_for = compile_only, arch
    driver.set_active(Driver(arch))
    try:
        yield launches
    finally:
        JITFunction.run, launch.compile_for = run, None
        # None lets Triton look for a device again when it next needs one.
        driver.set_active(active)


def compiled(call: Callable[[], object], arch: int, *, listed: bool = False) -> list[Compiled]:
    """Every different kernel that ``call`` launches, compiled for ``arch`` (compute capability × 10), disassembled where ``listed``.

    Triton keeps what this process has compiled, and so do ``resources`` and ``instructions``: a kernel that several tests launch is
    compiled, assembled and disassembled once.
    """
    with compiling_for(arch) as launches:
        call()
    found: dict[tuple[str, str], Compiled] = {}
    for function, kernel, kwargs in launches:
        constants = " ".join(f"{name}={value}" for name, value in sorted(kwargs.items()) if isinstance(value, (int, str)))
        registers, spilled = resources(kernel.asm["ptx"], arch)
        found.setdefault(
            (function.__name__, kernel.hash),
            Compiled(
                kernel=function.__name__,
                arch=arch,
                constants=constants,
                registers=registers,
                spilled=spilled,
                shared=kernel.metadata.shared,
                listing=instructions(kernel.asm["cubin"]) if listed else None,
            ),
        )
    return list(found.values())


@functools.cache
def resources(ptx: str, arch: int) -> tuple[int, int]:
    """(registers, spilled bytes) that the assembler reports for PTX text."""
    target = re.search(r"\.target (sm_\w+)", ptx)
    assert target is not None
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [get_ptxas(arch).path, "-v", "-O3", f"--gpu-name={target[1]}", str(source), "-o", str(Path(folder) / "cubin")]
        report = subprocess.run(command, capture_output=True, text=True)
    assert report.returncode == 0, report.stderr
    registers = re.search(r"Used (\d+) registers", report.stderr)
    spilled = re.search(r"(\d+) bytes spill stores", report.stderr)
    assert registers is not None
    assert spilled is not None
    return int(registers[1]), int(spilled[1])


@functools.cache
def instructions(cubin: bytes) -> Listing:
    """A kernel's instructions, as the disassembler lists them."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        said = subprocess.run([str(DISASSEMBLER), "-c", str(file)], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    widest = place = padding = aside = 0
    for line in said.stdout.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = place
        if re.match(r"\s+/\*[0-9a-f]+\*/", line):
            if jump := re.search(r"BRA.*`\((\.L_x_\d+)\)", line):
                jumps.append((place, jump[1]))
            if load := re.search(r"\bLDG(\.\S+)?", line):
                wide = re.search(r"\.(64|128)\b", load[0])
                widest = max(widest, int(wide[1]) if wide else 32)
            padding += re.search(r"\bNOP\b", line) is not None
            aside += re.search(r"\bSTL\b", line) is not None
            place += 1
    loop = max((at - labels[to] + 1 for at, to in jumps if labels.get(to, at) < at), default=0)
    return Listing(whole=place - padding, loop=loop, load=widest, aside=aside)


def problems(kernels: list[Compiled], spills: dict[str, int]) -> list[str]:
    """What stands against shipping ``kernels``; ``spills`` is the budget in bytes by kernel name, 0 for a kernel without one."""
    found = []
    for kernel in kernels:
        if kernel.spilled > spills.get(kernel.kernel, 0):
            found.append(f"{kernel.kernel} on sm_{kernel.arch} spills {kernel.spilled} bytes ({kernel.constants})")
        if kernel.shared > launch.SHARED_BYTES[kernel.arch]:
            found.append(f"{kernel.kernel} on sm_{kernel.arch} asks for {kernel.shared} bytes of shared memory ({kernel.constants})")
    return found
