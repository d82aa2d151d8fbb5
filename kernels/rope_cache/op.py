"""``rope_cache``: checks, launch and the choice of backend. Inference only. Knows heads and positions; nothing of models."""

from __future__ import annotations

import torch

from arkfast.kernels.common.backend import Backend, resolve_backend
from arkfast.kernels.common.checks import check_floating, check_ids, check_no_gradient, check_same_dtype, check_shapes
from arkfast.kernels.common.launch import Config, on_device_of
from arkfast.kernels.common.strides import block_of, unit_rows
from arkfast.kernels.rope_cache import reference

CONFIG = Config(num_warps=4, num_stages=1)


def _unfit(keys: torch.Tensor, values: torch.Tensor) -> str | None:
    """Why the kernel does not take these inputs; None when it does."""
    if keys.dtype == torch.float64:
        return "float64 inputs"
    if any(x.shape[-1] > 1 and x.stride(-1) != 1 for x in (keys, values)):
        return "caches whose features are not neighbours in memory"
    return None


def _launch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """``reference.rotate_and_write`` by the kernel."""
    from arkfast.kernels.rope_cache import kernel

    rows, size, heads = len(q), cos.shape[1], q.shape[1] // cos.shape[1]
    out = torch.empty(rows, heads, size, dtype=q.dtype, device=q.device)
    if rows:
        q, k, v, cos, sin = (unit_rows(x) for x in (q, k, v, cos, sin))
        # Products and sums are rounded one by one, as in torch, so the queries' and keys' bits are the same there in float32 too.
        unfused = CONFIG.kwargs() | {"enable_fp_fusion": False}
        kernel.rope_cache_rows[(rows, 2)](
            q,
            k,
            v,
            cos,
            sin,
            keys,
            values,
            positions.contiguous(),
            out,
            *(x.stride(0) for x in (q, k, v, cos, sin)),
            *keys.stride()[:3],
            *values.stride()[:3],
            keys.shape[2],
            HQ=heads,
            HKV=keys.shape[1],
            D=size,
            BQ=block_of(heads, least=1),
            BKV=block_of(keys.shape[1], least=1),
            BD=block_of(size // 2),
            **unfused,
        )
    return out


def rope_cache(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    *,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Rotates one decode step's queries and keys, and writes its keys and values into the cache in place, for inference.

    The rotation is that of Transformers' ``apply_rotary_pos_emb``, with its roundings: feature d and d + D/2 of a head are a pair. Row t of
    the inputs belongs to row t of the caches. A position outside [0, L) is a mistake of the caller that the torch backend raises on; the
    kernel, which cannot, writes nothing for it and makes that row's queries NaN.

    Args:
        q: [T, Hq · D] queries of one token a row; bfloat16, float16, float32 or float64, like every other input but ``positions``.
        k: [T, Hkv · D] its keys.
        v: [T, Hkv · D] its values.
        cos: [T, D] cosines of the rows' angles, each written twice as Transformers does; D is even.
        sin: [T, D] sines of them.
        keys: [R, Hkv, L, D] with R ≥ T, written to; any strides.
        values: [R, Hkv, L, D], written to; any strides.
        positions: [T] int32 or int64, where the tokens stand in their rows of the caches.

    Returns:
        [T, Hq, D] the rotated queries.

    Raises:
        ValueError: on wrong shapes, dtypes or backend; where a gradient would be wanted.
    """
    op = "rope_cache"
    sizes = check_shapes(
        op,
        q=(q, "T Fq"),
        k=(k, "T Fkv"),
        v=(v, "T Fkv"),
        cos=(cos, "T D"),
        sin=(sin, "T D"),
        keys=(keys, "R Hkv L D"),
        values=(values, "R Hkv L D"),
        positions=(positions, "T"),
    )
    tensors = {"q": q, "k": k, "v": v, "cos": cos, "sin": sin, "keys": keys, "values": values}
    check_floating(op, q=q)
    check_same_dtype(op, **tensors)
    check_no_gradient(op, **tensors)
    check_ids(op, positions=positions)
    size, heads = sizes["D"], sizes["Hkv"]
    if size == 0 or size % 2:
        raise ValueError(f"{op}: cos must have an even number of features, those of a head, got {size}")
    if sizes["Fq"] == 0 or sizes["Fq"] % size:
        raise ValueError(f"{op}: q must have a multiple of D={size} features, got {sizes['Fq']}")
    if sizes["Fkv"] != heads * size:
        raise ValueError(f"{op}: k must have Hkv · D = {heads} · {size} features as the caches do, got {sizes['Fkv']}")
    if sizes["R"] < sizes["T"]:
        raise ValueError(f"{op}: keys must have a row for each of the T={sizes['T']} tokens, got {sizes['R']}")
    if resolve_backend(backend, op, q, unfit=_unfit(keys, values)) == "torch":
        return reference.rotate_and_write(q, k, v, cos, sin, keys, values, positions)
    with on_device_of(q):
        return _launch(q, k, v, cos, sin, keys, values, positions)
