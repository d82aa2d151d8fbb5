"""The gated product of a feed-forward layer."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def swiglu_rows(gate, up, out, gate_stride, up_stride, width, BLOCK: tl.constexpr):
    """out[t, i] = silu(gate[t, i]) · up[t, i] for BLOCK features of a row; silu is rounded before the product."""
    t = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(gate + t * gate_stride + i, mask=i < width, other=0.0).to(tl.float32)
    u = tl.load(up + t * up_stride + i, mask=i < width, other=0.0).to(tl.float32)
    # silu(g) = g · sigmoid(g) = g / (1 + e^−g): −0 where e^−g overflows.
    silu = (g / (1.0 + tl.exp(-g))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + t * width + i, (silu * u).to(out.dtype.element_ty), mask=i < width)
