"""``gather_linear``: checks, launches, autograd and the choice of backend. The head's gradient is sparse."""

from __future__ import annotations

from typing import Any

import torch

from arkfast.kernels.common.backend import Backend, resolve_backend
from arkfast.kernels.common.checks import check_floating, check_ids, check_shapes
from arkfast.kernels.common.launch import Config, Rule, on_its_device, pick
from arkfast.kernels.common.precision import wide_dtype, without_autocast
from arkfast.kernels.common.recording import first_order
from arkfast.kernels.common.strides import block_of, unit_rows
from arkfast.kernels.gather_linear import reference
from arkfast.kernels.sparse_grad import sparse_weight_grad

# Width is H. A tile of BU gathered rows by BH features is in flight at once: 16 KB at 2 bytes, so that several programs share a
# multiprocessor and cover each other's waits.
TABLE = (
    Rule(config=Config(num_warps=4, num_stages=1, blocks={"BU": 64, "BH": 128}), itemsize=2),
    Rule(config=Config(num_warps=4, num_stages=1, blocks={"BU": 64, "BH": 64})),
)


class _GatherLinear(torch.autograd.Function):
    """scores[t, u] = weight[ids[t, u]] · hidden[t]; the weight's gradient comes from the same few entries."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, backend: Backend) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight, ids)
        ctx.backend = backend
        if backend == "triton":
            return launch_scores(hidden, weight, ids)
        with without_autocast(hidden):
            return reference.scores(hidden, weight, ids)

    @staticmethod
    @first_order("gather_linear")
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        hidden, weight, ids = ctx.saved_tensors
        d_hidden = d_weight = None
        with without_autocast(hidden):
            if ctx.needs_input_grad[0]:
                if ctx.backend == "triton":
                    d_hidden = launch_hidden_grad(grad, weight, ids, hidden.dtype)
                else:
                    d_hidden = reference.hidden_grad(grad, weight, ids, hidden).to(hidden.dtype)
            if ctx.needs_input_grad[1]:
                d_weight = sparse_weight_grad(grad, ids, hidden, weight.shape[0], dtype=weight.dtype, backend=ctx.backend)
        return d_hidden, d_weight, None, None


@on_its_device
def launch_scores(hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """``reference.scores`` by the kernel, for tensors that ``unfit`` lets pass; no gradient."""
    import triton

    from arkfast.kernels.gather_linear import kernel

    (positions, features), width = hidden.shape, ids.shape[1]
    scores = torch.empty(positions, width, dtype=torch.float32, device=hidden.device)
    if scores.numel():
        config = pick(TABLE, device=hidden.device, width=features, dtype=weight.dtype).kwargs()
        config["BU"] = block_of(width, least=4, most=config["BU"])
        hidden, weight, ids = unit_rows(hidden), unit_rows(weight), unit_rows(ids)
        kernel.gather_linear_scores[(positions, triton.cdiv(width, config["BU"]))](
            hidden,
            weight,
            ids,
            scores,
            hidden.stride(0),
            weight.stride(0),
            ids.stride(0),
            width,
            weight.shape[0],
            features,
            NH=triton.cdiv(features, config["BH"]),
            **config,
        )
    return scores


@on_its_device
def launch_hidden_grad(
    grad: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | None = None
) -> torch.Tensor:
    """Σ_u grad[t, u] · weight[ids[t, u]] [T, H] over ids in [0, V), summed in float32 and rounded once to ``dtype``; no gradient.

    ``scale`` [T] multiplies each position's gradient; where it is 0 the result is 0, whatever that gradient and the rows hold.
    """
    import triton

    from arkfast.kernels.gather_linear import kernel

    (positions, width), features = ids.shape, weight.shape[1]
    d_hidden = torch.empty(positions, features, dtype=dtype, device=weight.device)
    if d_hidden.numel():
        config = pick(TABLE, device=weight.device, width=features, dtype=weight.dtype).kwargs()
        config["BU"] = block_of(width, least=4, most=config["BU"])
        weight, ids = unit_rows(weight), unit_rows(ids)
        kernel.gather_linear_hidden_grad[(positions, triton.cdiv(features, config["BH"]))](
            grad.contiguous(),
            None if scale is None else scale.contiguous(),
            weight,
            ids,
            d_hidden,
            weight.stride(0),
            ids.stride(0),
            width,
            weight.shape[0],
            features,
            HAS_SCALE=scale is not None,
            NU=triton.cdiv(width, config["BU"]),
            **config,
        )
    return d_hidden


def unfit(hidden: torch.Tensor, weight: torch.Tensor) -> str | None:
    """Why the kernels do not take these inputs; None when they do."""
    return "float64 inputs" if wide_dtype(hidden, weight) == torch.float64 else None


def gather_linear(hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, *, backend: Backend = "auto") -> torch.Tensor:
    """scores[t, u] = weight[ids[t, u]] · hidden[t], with gradients to ``hidden`` and ``weight``.

    The weight's gradient is a dense [V, H] tensor, zero outside the gathered rows, summed in a fixed order (``sparse_weight_grad``) in
    float32 or wider and rounded once to the weight's dtype. Gradients of gradients are not available. The weight is whole: of a head that
    is cut along its vocabulary (tensor parallel), each part gathers its own ids and the scores are added by the caller.

    Args:
        hidden: [T, H] bfloat16, float16, float32 or float64.
        weight: [V, H], any of the same dtypes.
        ids: [T, U] int32 or int64 in [0, V); a negative id gives score 0 and no gradient. An id may repeat. An id past the
            weight is an error of the torch backend (on a GPU a failed device-side assertion); the kernels, which cannot raise, give
            the score NaN and no gradient.

    Returns:
        [T, U] float32 (float64 when an input is float64), accumulated in that dtype.

    Raises:
        ValueError: on wrong shapes, dtypes or backend.
    """
    op = "gather_linear"
    check_shapes(op, hidden=(hidden, "T H"), weight=(weight, "V H"), ids=(ids, "T U"))
    check_floating(op, hidden=hidden, weight=weight)
    check_ids(op, ids=ids)
    return _GatherLinear.apply(hidden, weight, ids, resolve_backend(backend, op, hidden, unfit=unfit(hidden, weight)))
