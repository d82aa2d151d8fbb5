"""The residual sum and its normalised row.

One program has one row, so what it computes does not depend on how many there are.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_rms_norm_row(
    x, residual, weight, normed, total, x_stride, residual_stride, H, eps,
    HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """total[t] = x[t] + residual[t], rounded; normed[t] = weight · (total[t] / √(mean(total[t]²) + eps)), the factor too. BLOCK ≥ H."""
    t = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, BLOCK)
    inside = h < H
    row = tl.load(x + t * x_stride + h, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        row += tl.load(residual + t * residual_stride + h, mask=inside, other=0.0).to(tl.float32)
        rounded = row.to(total.dtype.element_ty)
        tl.store(total + t * H + h, rounded, mask=inside)
        row = rounded.to(tl.float32)
    row *= tl.rsqrt(tl.sum(row * row, 0) / H + eps)
    scaled = tl.load(weight + h, mask=inside, other=0.0).to(tl.float32) * row.to(normed.dtype.element_ty).to(tl.float32)
    tl.store(normed + t * H + h, scaled.to(normed.dtype.element_ty), mask=inside)
