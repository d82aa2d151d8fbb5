"""``swiglu``: checks, launch and the choice of backend. For inference only."""

from __future__ import annotations

import torch

from arkfast.kernels.common.backend import Backend, resolve_backend
from arkfast.kernels.common.checks import check_floating, check_no_gradient, check_same_dtype, check_shapes
from arkfast.kernels.common.launch import Config, on_device_of
from arkfast.kernels.common.strides import block_of, unit_rows
from arkfast.kernels.swiglu import reference

CONFIG = Config(num_warps=4, num_stages=1, blocks={"BLOCK": 1024})
"""Eight features a thread, 16 bytes at 2 bytes each; a row of the family's decoders is 5 to 11 programs."""


def _unfit(gate: torch.Tensor) -> str | None:
    """Why the kernel does not take these inputs; None when it does."""
    return "float64 inputs" if gate.dtype == torch.float64 else None


def _launch(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """``reference.gated`` by the kernel."""
    import triton

    from arkfast.kernels.swiglu import kernel

    rows, width = gate.shape
    out = torch.empty(rows, width, dtype=gate.dtype, device=gate.device)
    if out.numel():
        gate, up = unit_rows(gate), unit_rows(up)
        config = CONFIG.kwargs()
        config["BLOCK"] = block_of(width, least=128, most=config["BLOCK"])
        kernel.swiglu_rows[(rows, triton.cdiv(width, config["BLOCK"]))](gate, up, out, gate.stride(0), up.stride(0), width, **config)
    return out


def swiglu(gate: torch.Tensor, up: torch.Tensor, *, backend: Backend = "auto") -> torch.Tensor:
    """silu(gate) · up, for inference; silu is computed in float32 and rounded to the inputs' dtype before the product.

    Args:
        gate: [T, I] bfloat16, float16, float32 or float64; may be a part of wider rows.
        up: [T, I] in gate's dtype; may be a part of wider rows.

    Returns:
        [T, I] in gate's dtype.

    Raises:
        ValueError: on wrong shapes, dtypes or backend; where a gradient would be wanted.
    """
    op = "swiglu"
    check_shapes(op, gate=(gate, "T I"), up=(up, "T I"))
    check_floating(op, gate=gate)
    check_same_dtype(op, gate=gate, up=up)
    check_no_gradient(op, gate=gate, up=up)
    if resolve_backend(backend, op, gate, unfit=_unfit(gate)) == "torch":
        return reference.gated(gate, up)
    with on_device_of(gate):
        return _launch(gate, up)
