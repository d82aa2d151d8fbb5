"""The teacher's block: top-k of a linear layer. Ours, a product and torch.topk, the same compiled, FlashInfer's top-k on the product."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from harness.common import compiled, compiles, installed, linear_input, our_backends
from harness.oracles import BF16_ULP, first, further, logits64, some_rows
from harness.runner import main
from harness.suite import Entry, Provider, Suite, Work
from shapes import Shape, linear_shapes

from arkfast.kernels import linear_topk_lse

Inputs = tuple[torch.Tensor, torch.Tensor]
Result = tuple[torch.Tensor, torch.Tensor]


class Exact(NamedTuple):
    """Some rows' logits in float64, and how far a float32 sum of them may be."""

    rows: torch.Tensor
    logits: torch.Tensor
    bound: torch.Tensor


def oracle(shape: Shape, x: Inputs) -> Exact:
    """4 · H · 2⁻²⁴ · Σ|w·h| bounds a float32 sum of H products in any order."""
    hidden, weight = x
    rows = some_rows(shape.T, hidden.device)
    magnitude = hidden[rows].double().abs() @ weight.double().abs().t()
    return Exact(rows, logits64(hidden[rows], weight), magnitude * (4 * shape.H * 2.0**-24))


def check_set(result: Result, exact: Exact) -> str | None:
    """The ids may differ from the exact ones only among logits that rounding to bfloat16 cannot tell apart: an ulp, and the sum's error."""
    ids = result[1][exact.rows].long()
    kth = exact.logits.topk(ids.shape[1], dim=1).values[:, -1:]
    chosen = exact.logits.gather(1, ids)
    slack = kth.abs() * BF16_ULP + exact.bound.gather(1, ids)
    return first(
        None if all(len(set(row)) == len(row) for row in ids.tolist()) else "an id is given twice",
        None if bool((chosen >= kth - slack).all()) else f"an id lies {(kth - chosen).max().item():.2e} below the {ids.shape[1]}th logit",
    )


def check_ours(x: Inputs, result: Result, exact: Exact) -> str | None:
    """The set, float32 scores of its ids, and their order."""
    values, ids = result[0][exact.rows], result[1][exact.rows].long()
    return first(
        check_set(result, exact),
        further("a score", values, exact.logits.gather(1, ids), exact.bound.gather(1, ids)),
        None if bool((values[:, 1:] <= values[:, :-1]).all()) else "values do not fall",
    )


def check_rounded(x: Inputs, result: Result, exact: Exact) -> str | None:
    """The set, and scores to half an ulp of bfloat16 besides the sum's error."""
    ids = result[1][exact.rows].long()
    chosen = exact.logits.gather(1, ids)
    bound = exact.bound.gather(1, ids) + chosen.abs() * BF16_ULP / 2
    return first(check_set(result, exact), further("a score", result[0][exact.rows], chosen, bound))


def ours(x: Inputs, k: int, backend: Any) -> Result:
    top = linear_topk_lse(*x, k, backend=backend)
    return top.values, top.ids


def eager(hidden: torch.Tensor, weight: torch.Tensor, k: int) -> Result:
    values, ids = (hidden @ weight.t()).topk(k, dim=1)
    return values, ids


def flashinfer(x: Inputs, k: int) -> Result:
    from flashinfer import top_k

    values, ids = top_k(x[0] @ x[1].t(), k, sorted=True, deterministic=True)
    return values, ids


def providers(shape: Shape, device: torch.device) -> list[Provider]:
    K = shape.K
    found = [
        Provider(name=f"ours/{backend}", run=functools.partial(ours, k=K, backend=backend), check=check_ours, ours=True)
        for backend in our_backends(shape)
    ]
    plain = functools.partial(eager, k=K)
    note = "bfloat16 scores"
    found.append(Provider(name="mm + torch.topk", run=lambda x: plain(*x), check=check_rounded, note=note))
    if compiles(device, shape):
        fast = compiled(plain)
        found.append(Provider(name="torch.compile", run=lambda x: fast(*x), check=check_rounded, note=note))
    if device.type == "cuda" and installed("flashinfer"):
        found.append(Provider(name="mm + FlashInfer", run=functools.partial(flashinfer, k=K), check=check_rounded, note=note))
    return found


def work(shape: Shape) -> Work:
    return Work(read=2 * (shape.T + shape.V) * shape.H + 8 * shape.T * shape.K, flop=2 * shape.T * shape.V * shape.H)


SUITE = Suite(
    name="linear_topk",
    shapes=linear_shapes,
    inputs=lambda shape, device, seed: linear_input(shape.T, shape.V, shape.H, device, seed),
    set_bytes=lambda shape: 2 * (shape.T + shape.V) * shape.H,
    oracle=oracle,
    providers=providers,
    work=work,
    ceilings=("copy", "mm"),
    baseline="mm + torch.topk",
)


def test_linear_topk(entry: Entry, timed: Any) -> None:
    timed(entry)


if __name__ == "__main__":
    main(SUITE)
