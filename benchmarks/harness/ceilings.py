"""What the machine can do at a shape: a copy of as many bytes, and the matrix products that an op cannot or need not avoid.

Both are torch's own, measured in the same rounds as the providers, because a published peak is no ceiling: cuBLAS
itself does not reach it at H = 896.
"""

from __future__ import annotations

import torch
from shapes import Shape

from harness.clock import Call

PEAK_FLOP = {"H200": 790e12, "H100": 790e12}
"""bfloat16 products measured on large square matrices, by what a GPU's name holds."""
COPY_LIMIT = 4 << 30
"""Bytes of one copy, both directions together: beyond it a copy's rate does not change."""
NOTES = {
    "copy": "copies as many bytes as the op must move, half of them read and half written",
    "mm": "torch.mm(out=) of the one product that the op needs",
    "dense": "torch.mm(out=) of a dense head: forward, hidden gradient, weight gradient",
}


def product_width(shape: Shape) -> int:
    """Features of the product that cannot be avoided: the teacher's where there is one."""
    return shape.HT or shape.H


def make(name: str, shape: Shape, moved: int, device: torch.device) -> Call:
    """The call that a ceiling times; its tensors are made here."""
    if name == "copy":
        half = min(moved, COPY_LIMIT) // 2
        source, target = (torch.empty(max(1, half), dtype=torch.int8, device=device) for _ in range(2))
        return lambda index: target.copy_(source)
    assert name in ("mm", "dense"), name
    H = product_width(shape) if name == "mm" else shape.H
    x, w = (torch.randn(rows, H, device=device, dtype=torch.bfloat16) for rows in (shape.T, shape.V))
    logits = torch.empty(shape.T, shape.V, device=device, dtype=torch.bfloat16)
    if name == "mm":
        return lambda index: torch.mm(x, w.t(), out=logits)
    dx, dw = torch.empty_like(x), torch.empty_like(w)
    return lambda index: (torch.mm(x, w.t(), out=logits), torch.mm(logits, w, out=dx), torch.mm(logits.t(), x, out=dw))


def rates(name: str, shape: Shape, moved: int, seconds: float) -> dict[str, float]:
    """A ceiling's own rate."""
    if name == "copy":
        return {"gb_s": min(moved, COPY_LIMIT) / seconds / 1e9}
    H = product_width(shape) if name == "mm" else 3 * shape.H
    return {"tflop_s": 2 * shape.T * shape.V * H / seconds / 1e12}


def peak_flop(gpu: str) -> float | None:
    """The measured peak of a GPU by its name, None where none is known."""
    return next((peak for name, peak in PEAK_FLOP.items() if name in gpu), None)
