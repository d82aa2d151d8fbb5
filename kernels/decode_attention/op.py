"""``decode_attention``: checks, launches and the choice of backend. For inference only."""

from __future__ import annotations

import math

import torch

from arkfast.kernels.common.backend import Backend, resolve_backend
from arkfast.kernels.common.checks import (
    check_count,
    check_floating,
    check_ids,
    check_no_gradient,
    check_positive,
    check_same_dtype,
    check_shapes,
)
from arkfast.kernels.common.launch import Config, Rule, on_device_of, pick
from arkfast.kernels.common.strides import block_of, unit_rows
from arkfast.kernels.decode_attention import reference

SPLIT = 1024
"""Keys of a part: more than a prompt of 30 s (about 400) and a long answer take together. The cache that transcription reserves is one part
then, without a second launch in each layer that merges parts, and no row depends on how long another is."""
MAX_SIZE, MAX_SIZE_FLOAT32, MAX_GROUP = 256, 128, 16
"""The widest heads, and the most that share their keys: the rows of one product of the tensor cores."""
# Width is D. A tile of BN keys and one of as many values are in flight: 8 to 16 KB each at 2 bytes, and 4-byte products, which the tensor
# cores do not take, fit the registers of so many warps.
TABLE = (
    Rule(config=Config(num_warps=4, num_stages=2, blocks={"BN": 64}), max_width=128, itemsize=2),
    Rule(config=Config(num_warps=4, num_stages=2, blocks={"BN": 32}), itemsize=2),
    Rule(config=Config(num_warps=4, num_stages=2, blocks={"BN": 32}), max_width=64),
    Rule(config=Config(num_warps=8, num_stages=2, blocks={"BN": 32})),
)
MERGE = Config(num_warps=1, num_stages=1)


def _unfit(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> str | None:
    """Why the kernels do not take these inputs; None when they do."""
    if keys.dtype == torch.float64:
        return "float64 inputs"
    most = MAX_SIZE if q.dtype.itemsize == 2 else MAX_SIZE_FLOAT32
    if q.shape[2] > most:
        return f"{q.dtype} heads of more than {most} features"
    if q.shape[1] // keys.shape[1] > MAX_GROUP:
        return f"groups of more than {MAX_GROUP} heads"
    if any(x.shape[-1] > 1 and x.stride(-1) != 1 for x in (keys, values)):
        return "caches whose features are not neighbours in memory"
    return None


def _launch(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, lens: torch.Tensor, limit: int, scale: float) -> torch.Tensor:
    """``reference.attention`` by the kernels."""
    import triton

    from arkfast.kernels.decode_attention import kernel

    (rows, heads, size), groups = q.shape, keys.shape[1]
    out = torch.empty(rows, heads * size, dtype=q.dtype, device=q.device)
    if rows == 0:
        return out
    parts = triton.cdiv(limit, SPLIT)
    partial, sums = out, None
    if parts > 1:
        partial = torch.empty(rows, heads, parts, size, dtype=torch.float32, device=q.device)
        sums = torch.empty(rows, heads, parts, 2, dtype=torch.float32, device=q.device)
    q, lens = unit_rows(q), lens.contiguous()
    kernel.decode_attention_parts[(rows, groups, parts)](
        q,
        keys,
        values,
        lens,
        partial,
        sums,
        *q.stride()[:2],
        *keys.stride()[:3],
        *values.stride()[:3],
        scale * math.log2(math.e),
        limit,
        parts,
        HKV=groups,
        G=heads // groups,
        D=size,
        BG=block_of(heads // groups),
        BD=block_of(size),
        SPLIT=SPLIT,
        WHOLE=parts == 1,
        **pick(TABLE, device=q.device, width=size, dtype=q.dtype).kwargs(),
    )
    if parts > 1:
        kernel.decode_attention_merge[(rows, heads)](
            partial, sums, lens, out, limit, parts, HQ=heads, D=size, BD=block_of(size), SPLIT=SPLIT, **MERGE.kwargs()
        )
    return out


def decode_attention(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    lens: torch.Tensor,
    *,
    limit: int | None = None,
    scale: float | None = None,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Attention of one query a row over the first ``lens[t]`` keys of row t, with the softmax and all sums in float32, for inference.

    Query head h looks at key-value head h // (Hq / Hkv). What stands past a row's length is never read by the kernel. The torch backend
    reads up to ``limit`` and gives it the weight 0, so there it must be finite and so must be its products with the query: a cache that
    starts as zeros and is only ever written with keys and values is. A row's result does not depend on the other rows.

    Args:
        q: [T, Hq, D] bfloat16, float16, float32 or float64; Hq is a multiple of Hkv.
        keys: [R, Hkv, L, D] in q's dtype with R ≥ T; any strides.
        values: [R, Hkv, L, D] in q's dtype; any strides.
        lens: [T] int64 or int32, how many keys each row looks at; a row of none gives zeros.
        limit: at least the largest of ``lens``, known to the host; L by default. A row that is longer gives NaN.
        scale: what products of queries and keys are multiplied by; 1/√D by default.

    Returns:
        [T, Hq · D] in q's dtype.

    Raises:
        ValueError: on wrong shapes, dtypes, limit, scale or backend; where a gradient would be wanted.
    """
    op = "decode_attention"
    sizes = check_shapes(op, q=(q, "T Hq D"), keys=(keys, "R Hkv L D"), values=(values, "R Hkv L D"), lens=(lens, "T"))
    check_floating(op, q=q)
    check_same_dtype(op, q=q, keys=keys, values=values)
    check_no_gradient(op, q=q, keys=keys, values=values)
    check_ids(op, lens=lens)
    if sizes["D"] == 0 or sizes["Hkv"] == 0 or sizes["Hq"] == 0 or sizes["Hq"] % sizes["Hkv"]:
        raise ValueError(f"{op}: q must have a multiple of Hkv={sizes['Hkv']} heads of at least one feature, got shape {list(q.shape)}")
    if sizes["R"] < sizes["T"]:
        raise ValueError(f"{op}: keys must have a row for each of the T={sizes['T']} queries, got {sizes['R']}")
    limit = sizes["L"] if limit is None else limit
    check_count(op, "limit", limit)
    if limit > sizes["L"]:
        raise ValueError(f"{op}: limit must be at most the caches' L={sizes['L']} positions, got {limit}")
    scale = sizes["D"] ** -0.5 if scale is None else scale
    check_positive(op, "scale", scale)
    if resolve_backend(backend, op, q, unfit=_unfit(q, keys, values)) == "torch":
        return reference.attention(q, keys, values, lens, limit, scale)
    with on_device_of(q):
        return _launch(q, keys, values, lens, limit, scale)
