"""``add_rms_norm``: checks, launch and the choice of backend. For inference only."""

from __future__ import annotations

import torch

from arkfast.kernels.add_rms_norm import reference
from arkfast.kernels.common.backend import Backend, resolve_backend
from arkfast.kernels.common.checks import check_floating, check_no_gradient, check_positive, check_same_dtype, check_shapes
from arkfast.kernels.common.launch import Config, Rule, on_device_of, pick
from arkfast.kernels.common.strides import block_of, unit_rows

MAX_FEATURES = 16_384
"""A row stays in one program's registers: 16 values a thread at 32 warps."""
# Width is H. Eight features a thread, 16 bytes at 2 bytes each, for the decoders of the family.
TABLE = (
    Rule(config=Config(num_warps=4, num_stages=1), max_width=1024),
    Rule(config=Config(num_warps=8, num_stages=1), max_width=4096),
    Rule(config=Config(num_warps=32, num_stages=1)),
)


def _unfit(x: torch.Tensor) -> str | None:
    """Why the kernel does not take these inputs; None when it does."""
    if x.dtype == torch.float64:
        return "float64 inputs"
    return f"rows of more than {MAX_FEATURES} features" if x.shape[1] > MAX_FEATURES else None


def _launch(x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """``reference.add_norm`` by the kernel."""
    from arkfast.kernels.add_rms_norm import kernel

    rows, features = x.shape
    normed = torch.empty(rows, features, dtype=x.dtype, device=x.device)
    total = x if residual is None else torch.empty_like(normed)
    if rows:
        source, other = unit_rows(x), None if residual is None else unit_rows(residual)
        kernel.add_rms_norm_row[(rows,)](
            source,
            other,
            unit_rows(weight),
            normed,
            None if other is None else total,
            source.stride(0),
            0 if other is None else other.stride(0),
            features,
            eps,
            HAS_RESIDUAL=other is not None,
            BLOCK=block_of(features),
            **pick(TABLE, device=x.device, width=features, dtype=x.dtype).kwargs(),
        )
    return normed, total


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, *, backend: Backend = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of a layer's output and the residual stream, and that sum normalised by its root mean square, for inference.

    The sum is rounded to the inputs' dtype, the normalised row is computed in float32, rounded to that dtype and then multiplied by the
    weight: as Transformers' decoder layers and ``Qwen2RMSNorm`` do.

    Args:
        x: [T, H] bfloat16, float16, float32 or float64.
        residual: [T, H] in x's dtype, or None where there is nothing to add yet.
        weight: [H] in x's dtype.
        eps: what is added to the mean square, > 0.

    Returns:
        (normed, total), both [T, H] in x's dtype; ``total`` is ``x`` itself where ``residual`` is None.

    Raises:
        ValueError: on wrong shapes, dtypes, eps or backend; where a gradient would be wanted.
    """
    op = "add_rms_norm"
    sizes = check_shapes(op, x=(x, "T H"), residual=(residual, "T H"), weight=(weight, "H"))
    check_floating(op, x=x)
    check_same_dtype(op, x=x, residual=residual, weight=weight)
    check_no_gradient(op, x=x, residual=residual, weight=weight)
    check_positive(op, "eps", eps)
    if sizes["H"] == 0:
        raise ValueError(f"{op}: x must have at least one feature, got shape {list(x.shape)}")
    if resolve_backend(backend, op, x, unfit=_unfit(x)) == "torch":
        return reference.add_norm(x, residual, weight, eps)
    with on_device_of(x):
        return _launch(x, residual, weight, eps)
