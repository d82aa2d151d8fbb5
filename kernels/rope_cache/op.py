"""``rope_cache``: checks, launch and the choice of backend. For inference only."""

from __future__ import annotations

import torch

from arkfast.kernels.common.backend import Backend, resolve_backend
from arkfast.kernels.common.checks import check_floating, check_ids, check_no_gradient, check_positive, check_same_dtype, check_shapes
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
    norms: tuple[torch.Tensor, torch.Tensor, float] | None,
) -> torch.Tensor:
    """``reference.rotate_and_write`` by the kernel."""
    from arkfast.kernels.rope_cache import kernel

    rows, size, heads = len(q), cos.shape[1], q.shape[1] // cos.shape[1]
    out = torch.empty(rows, heads, size, dtype=q.dtype, device=q.device)
    if rows:
        q, k, v, cos, sin = (unit_rows(x) for x in (q, k, v, cos, sin))
        q_norm, k_norm, eps = (None, None, None) if norms is None else (unit_rows(norms[0]), unit_rows(norms[1]), norms[2])
        # Products and sums are rounded one by one, as in torch, so the queries' and keys' bits are the same there in float32 too
        # (but for the order in which a norm's squares are summed).
        unfused = CONFIG.kwargs() | {"enable_fp_fusion": False}
        kernel.rope_cache_rows[(rows, 2)](
            q,
            k,
            v,
            q_norm,
            k_norm,
            eps,
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
            HAS_NORM=norms is not None,
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
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float | None = None,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Rotates one decode step's queries and keys, and writes its keys and values into the cache in place, for inference.

    The rotation is that of Transformers' ``apply_rotary_pos_emb``, with its roundings: feature d and d + D/2 of a head are a pair. With
    norms, each head of the queries and keys is normalised by its root mean square before, as Qwen3 does (see ``add_rms_norm``). Row t of
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
        q_norm, k_norm: [D] what normalised heads of the queries and of the keys are multiplied by; both or neither.
        eps: what is added to the mean square, > 0; needed with norms, and used only with them.

    Returns:
        [T, Hq, D] the rotated queries.

    Raises:
        ValueError: on wrong shapes, dtypes, eps or backend; where one norm comes without the other; where a gradient would be wanted.
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
        q_norm=(q_norm, "D"),
        k_norm=(k_norm, "D"),
    )
    tensors = {"q": q, "k": k, "v": v, "cos": cos, "sin": sin, "keys": keys, "values": values, "q_norm": q_norm, "k_norm": k_norm}
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
    norms = None
    if q_norm is not None or k_norm is not None or eps is not None:
        if q_norm is None or k_norm is None or eps is None:
            raise ValueError(f"{op}: q_norm, k_norm and eps come together; give all three, or none for heads that are not normalised")
        check_positive(op, "eps", eps)
        norms = (q_norm, k_norm, eps)
    if resolve_backend(backend, op, q, unfit=_unfit(keys, values)) == "torch":
        return reference.rotate_and_write(q, k, v, cos, sin, keys, values, positions, norms)
    with on_device_of(q):
        return _launch(q, k, v, cos, sin, keys, values, positions, norms)
