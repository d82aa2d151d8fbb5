"""What stands between a decoder layer's matrix products while it decodes: ours, Transformers' operations, and those compiled.

The mode "layer" is all four ops in a layer's order (normalisation, rotation and cache, attention, normalisation, gate), the others are one
op each. Every row looks at as many keys, of a cache that is half as long again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from harness.common import compiled, compiles, normal, our_backends
from harness.oracles import apart, first, further
from harness.runner import main
from harness.suite import Entry, Provider, Suite, Work
from shapes import DECODE_LENGTH, DECODE_ROWS, DECODERS, Shape, decode_shapes
from torch.nn import functional as F

from arkfast.kernels import add_rms_norm, decode_attention, rope_cache, swiglu

MODES = ("layer", "decode_attention", "rope_cache", "add_rms_norm", "swiglu")
EPS = 1e-6
Result = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Step:
    """One layer's tensors at one token a row, in bfloat16."""

    x: torch.Tensor
    """[T, H] the layer's input; ``residual`` [T, H] and ``weight`` [H] belong to it."""
    residual: torch.Tensor
    weight: torch.Tensor
    q: torch.Tensor
    """[T, Hq · D]; ``k`` and ``v`` are [T, Hkv · D], ``cos`` and ``sin`` [T, D]."""
    k: torch.Tensor
    v: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    keys: torch.Tensor
    """[T, Hkv, L, D] as are ``values``; their last position that is looked at, ``positions`` [T], is the one that is written."""
    values: torch.Tensor
    positions: torch.Tensor
    lens: torch.Tensor
    """[T] int64"""
    limit: int
    gate: torch.Tensor
    """[T, I] as is ``up``."""
    up: torch.Tensor


def sizes(shape: Shape) -> tuple[int, int, int, int, int]:
    """(query heads, key-value heads, features of a head, feed-forward width, keys looked at)."""
    return (*DECODERS[shape.H], DECODE_LENGTH if shape.H > 48 else 21)


def inputs(shape: Shape, device: torch.device, seed: int) -> Step:
    heads, groups, size, inner, length = sizes(shape)
    make = functools.partial(normal, device=device)
    turn = normal(shape.T, size // 2, device=device, seed=seed, dtype=torch.float32).mul_(3).repeat(1, 2)
    cache = shape.T, groups, length + length // 2, size
    return Step(
        x=make(shape.T, shape.H, seed=seed + 1),
        residual=make(shape.T, shape.H, seed=seed + 2),
        weight=make(shape.H, seed=seed + 3),
        q=make(shape.T, heads * size, seed=seed + 4),
        k=make(shape.T, groups * size, seed=seed + 5),
        v=make(shape.T, groups * size, seed=seed + 6),
        cos=turn.cos().bfloat16(),
        sin=turn.sin().bfloat16(),
        keys=make(*cache, seed=seed + 7),
        values=make(*cache, seed=seed + 8),
        positions=torch.full((shape.T,), length - 1, device=device),
        lens=torch.full((shape.T,), length, device=device),
        limit=length,
        gate=make(shape.T, inner, seed=seed + 9),
        up=make(shape.T, inner, seed=seed + 10),
    )


@dataclass(frozen=True, kw_only=True)
class Ops:
    """An implementation of the four, with our arguments."""

    add_rms_norm: Callable[..., Result]
    rope_cache: Callable[..., torch.Tensor]
    decode_attention: Callable[..., torch.Tensor]
    swiglu: Callable[..., torch.Tensor]


def run_mode(ops: Ops, mode: str, s: Step) -> Result:
    """What one op answers, or all of them; the written keys and values among it."""
    written = s.keys[:, :, s.limit - 1], s.values[:, :, s.limit - 1]
    if mode == "add_rms_norm":
        return ops.add_rms_norm(s.x, s.residual, s.weight, EPS)
    if mode == "swiglu":
        return (ops.swiglu(s.gate, s.up),)
    if mode == "decode_attention":
        return (ops.decode_attention(s.q.view(len(s.q), -1, s.cos.shape[1]), s.keys, s.values, s.lens, s.limit),)
    if mode == "rope_cache":
        return ops.rope_cache(s.q, s.k, s.v, s.cos, s.sin, s.keys, s.values, s.positions), *written
    normed, total = ops.add_rms_norm(s.x, s.residual, s.weight, EPS)
    query = ops.rope_cache(s.q, s.k, s.v, s.cos, s.sin, s.keys, s.values, s.positions)
    mixed = ops.decode_attention(query, s.keys, s.values, s.lens, s.limit)
    # The product after attention is left out; its first H features stand for the layer's half-way sum.
    again, total = ops.add_rms_norm(mixed[:, : s.x.shape[1]], total, s.weight, EPS)
    return normed, query, *written, mixed, again, total, ops.swiglu(s.gate, s.up)


def ours(backend: str) -> Ops:
    return Ops(
        add_rms_norm=functools.partial(add_rms_norm, backend=backend),
        rope_cache=functools.partial(rope_cache, backend=backend),
        decode_attention=lambda q, keys, values, lens, limit: decode_attention(q, keys, values, lens, limit=limit, backend=backend),
        swiglu=functools.partial(swiglu, backend=backend),
    )


def plain_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> Result:
    total = residual + x
    wide = total.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype), total


def plain_rope(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """Rotation of both by halves, and an indexed assignment for each of the caches."""

    def turned(x: torch.Tensor) -> torch.Tensor:
        low, high = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return x * cos[:, None] + torch.cat((-high, low), -1) * sin[:, None]

    rows = torch.arange(len(q), device=q.device)
    q, k, v = (x.view(len(x), -1, cos.shape[1]) for x in (q, k, v))
    query, keys[rows, :, positions] = turned(q), turned(k)
    values[rows, :, positions] = v
    return query


def plain_attention(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, lens: torch.Tensor, limit: int) -> torch.Tensor:
    """Scaled dot-product attention over repeated heads with a mask, as Transformers asks torch for it."""
    group = q.shape[1] // keys.shape[1]
    mask = torch.arange(limit, device=q.device) < lens[:, None, None, None]
    all_keys, all_values = (x[:, :, :limit].repeat_interleave(group, 1) for x in (keys, values))
    return F.scaled_dot_product_attention(q[:, :, None], all_keys, all_values, attn_mask=mask)[:, :, 0].flatten(1)


def plain_gate(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up


PLAIN = Ops(add_rms_norm=plain_norm, rope_cache=plain_rope, decode_attention=plain_attention, swiglu=plain_gate)


def oracle(shape: Shape, s: Step) -> Result:
    """float64 throughout, rounded to bfloat16 where the definition rounds what is written or handed on."""
    _, groups, size, *_ = sizes(shape)

    def norm(total: torch.Tensor) -> torch.Tensor:
        return s.weight.double() * total.double() / (total.double().square().mean(1, keepdim=True) + EPS).sqrt()

    def turned(x: torch.Tensor) -> torch.Tensor:
        half = size // 2
        low, high = x.double().view(len(x), -1, 2, half).unbind(2)
        cos, sin = (part.double()[:, None, :half] for part in (s.cos, s.sin))
        return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)

    def attention(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        scores = q.double().view(shape.T, groups, -1, size) @ keys[:, :, : s.limit].double().transpose(2, 3) / size**0.5
        return (scores.softmax(-1) @ values[:, :, : s.limit].double()).flatten(1)

    gated = s.gate.double() / (1 + (-s.gate.double()).exp()) * s.up.double()
    total = s.x + s.residual
    if shape.mode == "add_rms_norm":
        return norm(total), total.double()
    if shape.mode == "swiglu":
        return (gated,)
    if shape.mode == "decode_attention":
        return (attention(s.q, s.keys, s.values),)
    query, key, value = turned(s.q), turned(s.k), s.v.double().view(shape.T, groups, size)
    if shape.mode == "rope_cache":
        return query, key, value
    keys, values = s.keys.clone(), s.values.clone()
    keys[:, :, s.limit - 1], values[:, :, s.limit - 1] = key.to(keys.dtype), s.v.view(shape.T, groups, size)
    mixed = attention(query.to(s.q.dtype), keys, values)
    half_way = mixed[:, : shape.H] + total.double()
    return norm(total), query, key, value, mixed, norm(half_way), half_way, gated


def check(s: Step, result: Result, oracle: Result) -> str | None:
    """Each part within the roundings to bfloat16 that stand in its way, at most four: half an ulp each, 2e-3 in norm; values are copies."""
    if len(result) != len(oracle):
        return f"{len(result)} parts of an answer in place of {len(oracle)}"
    parts = [apart(f"part {i}", got, want, 8e-3) for i, (got, want) in enumerate(zip(result, oracle, strict=True))]
    copied = {3: 2, 8: 3}.get(len(result))
    return first(*parts, further("a copied value", result[copied], oracle[copied], 0.0) if copied else None)


def providers(shape: Shape, device: torch.device) -> list[Provider]:
    found = []
    for backend in our_backends(shape):
        run = functools.partial(run_mode, ours(backend), shape.mode)
        found.append(Provider(name=f"ours/{backend}", run=run, check=check, ours=True, graph=backend == "triton"))
    plain = functools.partial(run_mode, PLAIN, shape.mode)
    found.append(Provider(name="eager", run=plain, check=check, graph=True))
    if compiles(device, shape) and shape.T in DECODE_ROWS[:1]:
        found.append(Provider(name="compiled", run=compiled(plain), check=check, graph=True))
    return found


def work(shape: Shape) -> Work:
    """Every input read and every output written once, and of the cache the keys that are looked at."""
    heads, groups, size, inner, length = sizes(shape)
    numbers = {
        "add_rms_norm": 4 * shape.H,
        "rope_cache": 2 * heads * size + 4 * groups * size + 2 * size,
        "decode_attention": 2 * heads * size + 2 * groups * length * size,
        "swiglu": 3 * inner,
    }
    numbers["layer"] = sum(numbers.values()) + numbers["add_rms_norm"]
    return Work(read=2 * shape.T * numbers[shape.mode])


def set_bytes(shape: Shape) -> int:
    """Of what a set's job reads and writes."""
    return work(shape).read


SUITE = Suite(
    name="decode_step",
    shapes=functools.partial(decode_shapes, modes=MODES),
    inputs=inputs,
    set_bytes=set_bytes,
    oracle=oracle,
    providers=providers,
    work=work,
    baseline="eager",
    queued=False,
)


def test_decode_step(entry: Entry, timed: Any) -> None:
    timed(entry)


if __name__ == "__main__":
    main(SUITE)
