"""``rotary``: checks, launch, autograd and the choice of backend, as one operator that torch.compile takes whole.

The gradient of a rotation is the rotation back, so that the operator ``arkfast::rotary`` is its own backward.
"""

from __future__ import annotations

from typing import Protocol

import torch

from arkfast.kernels.common.backend import Backend, resolve_backend
from arkfast.kernels.common.checks import check_choice, check_floating, check_no_gradient, check_same_dtype, check_shapes
from arkfast.kernels.common.launch import Config, on_its_device
from arkfast.kernels.common.strides import block_of, unit_rows
from arkfast.kernels.rotary import reference

CONFIG = Config(num_warps=4, num_stages=1)
TILE = 2048
"""Features that one program turns, heads of several positions among them: sixteen a thread, two loads of 16 bytes at 2 bytes each."""
WIDEST = 256
"""Features of a head that the kernel takes."""
MOST_ROWS = 2**31 - 64
"""Heads of all positions that it takes: it counts them in 32 bits."""

# Declared piece by piece: ``torch.library.custom_op`` would import torch.compile's machinery, seconds of it, at the first call.
torch.library.define("arkfast::rotary", "(Tensor q, Tensor k, Tensor cos, Tensor sin, bool back, str backend) -> (Tensor, Tensor)")


@torch.library.impl("arkfast::rotary", "default")
def _turned(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, back: bool, backend: Backend
) -> tuple[torch.Tensor, torch.Tensor]:
    """The queries and keys of ``rotary``, contiguous; ``back`` turns by the angles' negatives."""
    if resolve_backend(backend, "rotary", q, unfit=_unfit(q, k)) == "triton":
        return _launch(q, k, cos, sin, back)
    sin = -sin if back else sin
    return reference.turned(q, cos, sin).contiguous(), reference.turned(k, cos, sin).contiguous()


@torch.library.register_fake("arkfast::rotary")
def _(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, back: bool, backend: Backend
) -> tuple[torch.Tensor, torch.Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


class _Context(Protocol):
    """What autograd keeps of a call."""

    back: bool
    backend: Backend
    saved_tensors: tuple[torch.Tensor, ...]

    def save_for_backward(self, *tensors: torch.Tensor) -> None: ...


Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, bool, Backend]


def _setup(ctx: _Context, inputs: Inputs, output: tuple[torch.Tensor, ...]) -> None:
    _, _, cos, sin, ctx.back, ctx.backend = inputs
    ctx.save_for_backward(cos, sin)


def _backward(ctx: _Context, d_q: torch.Tensor, d_k: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    d_q, d_k = torch.ops.arkfast.rotary(d_q, d_k, *ctx.saved_tensors, not ctx.back, ctx.backend)
    return d_q, d_k, *(None,) * 4


torch.library.register_autograd("arkfast::rotary", _backward, setup_context=_setup)


def _unfit(q: torch.Tensor, k: torch.Tensor) -> str | None:
    """Why the kernel does not take these inputs; None when it does."""
    if q.dtype == torch.float64:
        return "float64 inputs"
    if q.shape[2] > WIDEST:
        return f"heads of more than {WIDEST} features"
    if q.shape[0] * max(q.shape[1], k.shape[1]) > MOST_ROWS:
        return f"more than {MOST_ROWS} heads of all positions"
    return None


@on_its_device
def _launch(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, back: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """``_turned`` by the kernel."""
    import triton

    from arkfast.kernels.rotary import kernel

    (positions, heads, size), groups = q.shape, k.shape[1]
    q, k, cos, sin = (unit_rows(x) for x in (q, k, cos, sin))
    found = torch.empty(q.shape, dtype=q.dtype, device=q.device), torch.empty(k.shape, dtype=k.dtype, device=k.device)
    if most := positions * max(heads, groups):
        block = block_of(size)
        # Products and sums are rounded one by one, as in torch, so the bits are the same there in float32 too.
        unfused = CONFIG.kwargs() | {"enable_fp_fusion": False}
        kernel.rotary_rows[(triton.cdiv(most, TILE // block), 2)](
            q,
            k,
            *found,
            cos,
            sin,
            *q.stride()[:2],
            *k.stride()[:2],
            cos.stride(0),
            sin.stride(0),
            positions,
            cos.shape[1],
            HQ=heads,
            HK=groups,
            D=size,
            BACK=back,
            BR=TILE // block,
            BD=block,
            **unfused,
        )
    return found


def rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, backend: Backend = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys with neighbouring features of each head turned by their positions' angles, both in one launch.

    Features 2i and 2i + 1 are a pair, for each i < r, and turn by the angle whose cosine and sine are given (RoFormer, arXiv 2104.09864,
    equation 34); features from 2r on pass unchanged. Products and sums are rounded to the inputs' dtype one by one, forward and
    backward, so that both backends give the same bits. Its gradient may be differentiated again.

    Args:
        q: [T, Hq, D] bfloat16, float16, float32 or float64, with gradient; any strides.
        k: [T, Hk, D] in q's dtype, with gradient; any strides.
        cos: [T, r] cosines in q's dtype, with 1 ≤ r ≤ D / 2; no gradient.
        sin: [T, r] sines.

    Returns:
        The turned q and k, contiguous.

    Raises:
        ValueError: on wrong shapes, dtypes or backend; where the angles require a gradient.
    """
    op = "rotary"
    check_choice(op, "backend", backend, ("auto", "triton", "torch"))
    sizes = check_shapes(op, q=(q, "T Hq D"), k=(k, "T Hk D"), cos=(cos, "T r"), sin=(sin, "T r"))
    check_floating(op, q=q)
    check_same_dtype(op, q=q, k=k, cos=cos, sin=sin)
    check_no_gradient(op, cos=cos, sin=sin)
    if not 1 <= sizes["r"] <= sizes["D"] // 2:
        raise ValueError(f"{op}: cos must have from 1 to D / 2 = {sizes['D'] // 2} angles a position, got {sizes['r']}")
    found: tuple[torch.Tensor, torch.Tensor] = torch.ops.arkfast.rotary(q, k, cos, sin, False, backend)
    return found
