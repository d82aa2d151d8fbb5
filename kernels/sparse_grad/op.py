"""``sparse_weight_grad``: checks, allocation, launches and the choice of backend."""

from __future__ import annotations

from typing import Literal

import torch

from arkfast.kernels.common.backend import Backend, resolve_backend
from arkfast.kernels.common.checks import check_choice, check_count, check_floating, check_ids, check_shapes
from arkfast.kernels.common.ids import narrowed
from arkfast.kernels.common.launch import Config, Rule, on_its_device, pick
from arkfast.kernels.common.precision import wide_dtype
from arkfast.kernels.common.strides import block_of, unit_rows
from arkfast.kernels.sparse_grad import reference

Mode = Literal["sorted", "atomic"]

PIECE = 128
"""Entries of a long run that one program sums. Partial sums take H floats for every PIECE entries: 1.8 KB a position at U = 64, H = 896."""
PIECE_OF_WIDE_ROWS = 256
"""The same beyond H = 1,024, so that partial sums do not take more than half of what the loss may hold: 2 KB a position at H = 2,048."""

# Width is H. A block as wide as the row gives a program all of it, so that its search for runs is done once; BE rows of a block are in
# flight. WINDOW is the number of sorted places in which one program looks for runs: they come one after another, so few of them.
TABLE = (
    # Most runs have two or three entries: of eight rows that are asked for together, the others would be asked for in vain.
    Rule(config=Config(num_warps=4, num_stages=1, blocks={"BE": 4, "BH": 1024, "WINDOW": 32}), min_arch=80, itemsize=2),
    Rule(config=Config(num_warps=8, num_stages=1, blocks={"BE": 4, "BH": 1024, "WINDOW": 32}), min_arch=80),
    # The interpreter's time goes by programs and steps.
    Rule(config=Config(blocks={"BE": 32, "BH": 1024, "WINDOW": 512})),
)


@torch.no_grad()
def sparse_weight_grad(
    grad: torch.Tensor,
    ids: torch.Tensor,
    hidden: torch.Tensor,
    num_rows: int,
    *,
    extra_ids: torch.Tensor | None = None,
    extra_rows: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    mode: Mode = "sorted",
    backend: Backend = "auto",
) -> torch.Tensor:
    """The dense gradient of a weight [V, H] whose gathered rows gave scores[t, u] = weight[ids[t, u]] · hidden[t].

    dW[v] = Σ_{t,u: ids[t,u] = v} grad[t,u] · hidden[t] + Σ_{n: extra_ids[n] = v} extra_rows[n], summed in a fixed order in float32 or
    wider: the same input gives the same bits. Rows of no entry are not touched. The result has all V rows: a head that is cut along its
    vocabulary calls this with ids of its own part.

    Args:
        grad: [T, U] gradient of the scores; an entry of 0 adds 0, whatever the position's hidden row holds.
        ids: [T, U] int32 or int64 in [0, num_rows); negative entries are left out. An id past that is an error of the torch backend (on a
            GPU a failed device-side assertion); the kernels, which cannot raise, leave its entry out.
        hidden: [T, H].
        num_rows: V.
        extra_ids: [N] int32 or int64 rows that ``extra_rows`` [N, H] are added to as they are, in the same sort: the gradient of an
            embedding's lookups where the embedding is the head (tied weights).
        out: [V, H] float32 or float64 to add to, e.g. an accumulated gradient; None starts from zeros.
        dtype: of a new result, rounded to once; None gives float32 (float64 when an input is float64).
        mode: "atomic" adds without sorting and in no fixed order on a GPU; for comparison only.

    Returns:
        ``out``, or a new [V, H] tensor.

    Raises:
        ValueError: on wrong shapes, dtypes or backend.
        RuntimeError: the mode is "atomic" where ``torch.use_deterministic_algorithms`` is on.
    """
    op = "sparse_weight_grad"
    check_count(op, "num_rows", num_rows)
    check_choice(op, "mode", mode, ("sorted", "atomic"))
    strict = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    if mode == "atomic" and strict:
        raise RuntimeError(f"{op}: mode='atomic' adds in no fixed order, and torch.use_deterministic_algorithms is on; take mode='sorted'")
    check_shapes(
        op,
        grad=(grad, "T U"),
        ids=(ids, "T U"),
        hidden=(hidden, "T H"),
        out=(out, "V H"),
        extra_ids=(extra_ids, "N"),
        extra_rows=(extra_rows, "N H"),
    )
    check_floating(op, grad=grad, hidden=hidden, extra_rows=extra_rows)
    check_ids(op, ids=ids, extra_ids=extra_ids)
    if (extra_ids is None) != (extra_rows is None):
        raise ValueError(f"{op}: extra_ids and extra_rows come together, got one of them")
    if out is not None and (out.shape[0] != num_rows or out.dtype not in (torch.float32, torch.float64)):
        raise ValueError(
            f"{op}: out must be float32 or float64 with num_rows={num_rows} rows, got {out.dtype} {list(out.shape)}; sums in a narrower "
            "dtype would lose small contributions"
        )
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ValueError(f"{op}: dtype must be a torch.dtype, got {dtype!r}")
    if out is not None and dtype not in (None, out.dtype):
        raise ValueError(f"{op}: dtype={dtype} is for a new result; out has {out.dtype}")
    wide = wide_dtype(*(x for x in (grad, hidden, extra_rows, out) if x is not None))
    entries = ids.numel() + (0 if extra_ids is None else extra_ids.numel())
    chosen = resolve_backend(backend, op, hidden, unfit=_unfit(wide, entries))
    if chosen == "torch":
        return _in_torch(grad, ids, hidden, num_rows, extra_ids, extra_rows, out, dtype or wide, wide, mode)

    narrow = dtype if dtype is not None and mode == "sorted" else wide
    result = torch.zeros(num_rows, hidden.shape[1], dtype=narrow, device=hidden.device) if out is None else out
    if entries and hidden.shape[1]:
        rows = unit_rows(result)  # a caller's own memory may have a layout that the kernels do not write
        _launch(grad, ids, hidden, extra_ids, extra_rows, rows, add=out is not None, mode=mode)
        if rows is not result:
            result.copy_(rows)
    return result if out is not None or dtype is None else result.to(dtype)


def piece_of(features: int) -> int:
    """Entries of a piece, for rows of so many features."""
    return PIECE if features <= 1024 else PIECE_OF_WIDE_ROWS


def _unfit(wide: torch.dtype, entries: int) -> str | None:
    if wide == torch.float64:
        return "float64 inputs"
    return "2³¹ entries or more" if entries >= 2**31 else None


def _in_torch(
    grad: torch.Tensor,
    ids: torch.Tensor,
    hidden: torch.Tensor,
    num_rows: int,
    extra_ids: torch.Tensor | None,
    extra_rows: torch.Tensor | None,
    out: torch.Tensor | None,
    dtype: torch.dtype,
    wide: torch.dtype,
    mode: str,
) -> torch.Tensor:
    result = torch.zeros(num_rows, hidden.shape[1], dtype=wide, device=hidden.device) if out is None else out
    ordered = mode == "sorted"
    reference.accumulate(result, grad, ids, hidden.to(result.dtype), ordered=ordered)
    if extra_ids is not None and extra_rows is not None:
        one = torch.ones(extra_ids.shape[0], 1, dtype=result.dtype, device=result.device)
        reference.accumulate(result, one, extra_ids[:, None], extra_rows.to(result.dtype), ordered=ordered)
    return result if out is not None else result.to(dtype)


@on_its_device
def _launch(
    grad: torch.Tensor,
    ids: torch.Tensor,
    hidden: torch.Tensor,
    extra_ids: torch.Tensor | None,
    extra_rows: torch.Tensor | None,
    out: torch.Tensor,
    *,
    add: bool,
    mode: str,
) -> None:
    """out[v] (+)= the sum of v's entries, for every v that has one; ``add`` tells whether out's values count."""
    import triton

    from arkfast.kernels.sparse_grad import kernel

    features, device = hidden.shape[1], hidden.device
    config = pick(TABLE, device=device, width=features, dtype=hidden.dtype)
    blocks = {**config.kwargs(), "BH": block_of(features, most=config.blocks["BH"])}
    window = blocks.pop("WINDOW")
    hidden = unit_rows(hidden)
    extra = None if extra_rows is None else unit_rows(extra_rows)
    factor = grad.contiguous()
    # A factor of 0 is no entry: the row that it would be multiplied by may hold NaN.
    keys = narrowed(ids).masked_fill(grad == 0, -1).flatten()
    if extra_ids is not None:
        keys = torch.cat([keys, narrowed(extra_ids)])
    entries, slots, width = keys.numel(), ids.numel(), max(1, ids.shape[1])
    strides = hidden.stride(0), 0 if extra is None else extra.stride(0)
    sizes = slots, width, entries, out.shape[0], features
    columns, piece = triton.cdiv(features, blocks["BH"]), piece_of(features)
    if mode == "atomic":
        grid = (triton.cdiv(entries, blocks["BE"]), columns)
        kernel.weight_grad_atomic[grid](
            keys, factor, hidden, extra, out, *strides, out.stride(0), *sizes, EXTRA=extra is not None, **blocks
        )
        return
    # Stable, so that an id's entries stay in the order of their positions.
    keys, order = keys.sort(stable=True)
    shared = {"EXTRA": extra is not None, "PIECE": piece, **blocks}
    kernel.weight_grad_runs[(triton.cdiv(entries, window), columns)](
        keys, order, factor, hidden, extra, out, *strides, out.stride(0), *sizes, ADD=add, WINDOW=window, **shared
    )
    if entries < 2 * piece:
        return
    pieces = triton.cdiv(entries, piece)
    partial = torch.empty(pieces, features, dtype=torch.float32, device=device)
    heads = torch.empty(pieces, dtype=torch.int32, device=device)
    kernel.weight_grad_pieces[(pieces, columns)](keys, order, factor, hidden, extra, partial, heads, *strides, *sizes, **shared)
    del shared["EXTRA"]
    kernel.weight_grad_long_runs[(pieces, columns)](
        keys, partial, heads, out, out.stride(0), entries, features, ADD=add, **shared
    )  # fmt: skip
