"""``sparse_weight_grad``: checks, allocation and the choice of backend. Knows no loss."""

from __future__ import annotations

import torch

from arkfast.kernels.common.backend import Backend, resolve_backend
from arkfast.kernels.common.checks import check_count, check_floating, check_ids, check_shapes
from arkfast.kernels.common.precision import wide_dtype
from arkfast.kernels.sparse_grad import reference


@torch.no_grad()
def sparse_weight_grad(
    grad: torch.Tensor,
    ids: torch.Tensor,
    hidden: torch.Tensor,
    num_rows: int,
    *,
    out: torch.Tensor | None = None,
    backend: Backend = "auto",
) -> torch.Tensor:
    """The dense gradient of a weight [V, H] whose gathered rows gave scores[t, u] = weight[ids[t, u]] · hidden[t].

    dW[v] = Σ_{t,u: ids[t,u] = v} grad[t,u] · hidden[t], summed in a fixed order in float32 or wider: the same input gives the same bits.

    Args:
        grad: [T, U] gradient of the scores.
        ids: [T, U] int32 or int64 in [0, num_rows); negative entries are left out.
        hidden: [T, H].
        num_rows: V.
        out: [V, H] float32 or float64 to add to, e.g. an accumulated gradient; None starts from zeros.

    Returns:
        ``out``, or a new [V, H] tensor in float32 (float64 when an input is float64).

    Raises:
        ValueError: on wrong shapes, dtypes or backend.
    """
    op = "sparse_weight_grad"
    resolve_backend(backend, op)
    check_count(op, "num_rows", num_rows)
    check_shapes(op, grad=(grad, "T U"), ids=(ids, "T U"), hidden=(hidden, "T H"), out=(out, "V H"))
    check_floating(op, grad=grad, hidden=hidden)
    check_ids(op, ids=ids)
    if out is None:
        out = torch.zeros(num_rows, hidden.shape[1], dtype=wide_dtype(grad, hidden), device=hidden.device)
    elif out.shape[0] != num_rows or out.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{op}: out must be float32 or float64 with num_rows={num_rows} rows, got {out.dtype} {list(out.shape)}; sums in a narrower "
            "dtype would lose small contributions"
        )
    reference.accumulate(out, grad, ids, hidden.to(out.dtype))
    return out
