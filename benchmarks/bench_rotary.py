"""Rotary positions of the audio encoder's queries and keys: ours, the same in PyTorch's operations, and those compiled.

Letters: T frames of all clips, H the encoder's width, in heads of 64 features of which half turn. The mode "backward" runs forward and
backward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from harness.common import compiled, normal, our_backends
from harness.oracles import BF16_ULP, first, further
from harness.runner import main
from harness.suite import Entry, Provider, Suite, Work
from shapes import Shape

from arkfast.kernels import rotary

SIZE, PAIRS = 64, 16
"""Features of a head, and pairs of them that turn."""
FRAMES = (64 * 500, 500)
"""Of 64 clips of ten seconds, and of one."""
Result = tuple[torch.Tensor, ...]
Turn = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Heads:
    """A layer's queries and keys, in bfloat16."""

    q: torch.Tensor
    """[T, H / 64, 64] as are ``k`` and the gradients ``d_q`` and ``d_k`` of what is turned."""
    k: torch.Tensor
    cos: torch.Tensor
    """[T, 16] as is ``sin``."""
    sin: torch.Tensor
    d_q: torch.Tensor
    d_k: torch.Tensor
    backward: bool


def shapes(device: str) -> list[Shape]:
    modes = ("forward", "backward")
    if device == "cpu":
        return [Shape(T=7, H=2 * SIZE, mode=mode) for mode in modes]
    return [Shape(T=T, H=1_280, mode=mode, core=FRAMES[0] == T) for T in FRAMES for mode in modes]


def inputs(shape: Shape, device: torch.device, seed: int) -> Heads:
    heads, backward = (shape.T, shape.H // SIZE, SIZE), shape.mode == "backward"
    turn = normal(shape.T, PAIRS, device=device, seed=seed, scale=3.0, dtype=torch.float32)
    q, k, d_q, d_k = (normal(*heads, device=device, seed=seed + i) for i in range(1, 5))
    q, k = q.requires_grad_(backward), k.requires_grad_(backward)
    return Heads(q, k, turn.cos().bfloat16(), turn.sin().bfloat16(), d_q, d_k, backward)


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The definition in float64: a pair as one complex number, times the angle's."""
    pairs = torch.view_as_complex(x.detach().double()[..., : 2 * PAIRS].unflatten(-1, (PAIRS, 2)).contiguous())
    angle = torch.complex(cos.double(), sin.double())[:, None]
    return torch.cat([torch.view_as_real(pairs * angle).flatten(-2), x.detach().double()[..., 2 * PAIRS :]], -1)


def oracle(shape: Shape, x: Heads) -> Result:
    found = turned(x.q, x.cos, x.sin), turned(x.k, x.cos, x.sin)
    return (*found, turned(x.d_q, x.cos, -x.sin), turned(x.d_k, x.cos, -x.sin)) if x.backward else found


def check(x: Heads, result: Result, oracle: Result) -> str | None:
    """Two products and their sum are rounded, each at most to half a unit of the pair's size."""
    sources = (x.q, x.k, x.d_q, x.d_k)[: len(result)]
    complaints = []
    for name, got, want, source in zip(("query", "key", "query's gradient", "key's gradient"), result, oracle, sources, strict=False):
        pair = source.detach().double().unflatten(-1, (-1, 2)).norm(dim=-1, keepdim=True)
        complaints.append(further(f"a {name}", got.detach(), want, (1.5 * BF16_ULP * pair).expand(*pair.shape[:-1], 2).flatten(-2)))
    return first(*complaints)


def eager(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As models of Transformers write it: neighbours taken apart, turned, put together."""

    def one(x: torch.Tensor) -> torch.Tensor:
        even, odd = x[..., : 2 * PAIRS : 2], x[..., 1 : 2 * PAIRS : 2]
        c, s = cos[:, None], sin[:, None]
        return torch.cat((torch.stack((even * c - odd * s, odd * c + even * s), -1).flatten(-2), x[..., 2 * PAIRS :]), -1)

    return one(q), one(k)


def whole(turn: Turn, x: Heads) -> Result:
    """The forward and, where wanted, the gradients."""
    found = turn(x.q, x.k, x.cos, x.sin)
    if not x.backward:
        return found
    return (*(part.detach() for part in found), *torch.autograd.grad(found, (x.q, x.k), (x.d_q, x.d_k)))


def providers(shape: Shape, device: torch.device) -> list[Provider]:
    found = []
    for backend in our_backends(shape):
        run = functools.partial(whole, functools.partial(rotary, backend=backend))
        graph = backend == "triton" and shape.mode == "forward"
        found.append(Provider(name=f"ours/{backend}", run=run, check=check, ours=True, graph=graph))
    found.append(Provider(name="eager", run=functools.partial(whole, eager), check=check))
    if device.type == "cuda" and shape.core and shape.mode == "forward":
        found.append(Provider(name="compiled", run=functools.partial(whole, compiled(eager)), check=check))
    return found


def work(shape: Shape) -> Work:
    """Queries, keys and angles read once, queries and keys written once; backward, their gradients too, with the angles again."""
    once = 2 * (4 * shape.T * shape.H + 2 * shape.T * PAIRS)
    written = 4 * shape.T * shape.H
    backward = shape.mode == "backward"
    return Work(read=once * (1 + backward), excluded_peak=written * (1 + backward))


SUITE = Suite(
    name="rotary",
    shapes=shapes,
    inputs=inputs,
    set_bytes=lambda shape: 8 * shape.T * shape.H,
    oracle=oracle,
    providers=providers,
    work=work,
    baseline="eager",
)


def test_rotary(entry: Entry, timed: Any) -> None:
    timed(entry)


if __name__ == "__main__":
    main(SUITE)
