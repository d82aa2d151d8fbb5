"""The head's gradient from a few ids a position: our sorted sums, our atomics, index_add, and the dense product they replace."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from harness.common import normal, our_backends, zipf_ids
from harness.oracles import apart, spans
from harness.runner import main
from harness.suite import Entry, Provider, Row, Suite, Work
from shapes import Shape, linear_shapes

from arkfast.kernels import sparse_weight_grad


@dataclass(frozen=True)
class Entries:
    """scores[t, u] = weight[ids[t, u]] · hidden[t] had the gradient ``grad``."""

    grad: torch.Tensor
    ids: torch.Tensor
    hidden: torch.Tensor
    num_rows: int


def inputs(shape: Shape, device: torch.device, seed: int) -> Entries:
    """Ids as frequent as words: the longest run of one id is what a sorted sum must cut."""
    U = 2 * shape.K
    return Entries(
        normal(shape.T, U, device=device, seed=seed, dtype=torch.float32),
        zipf_ids(shape.T, U, shape.V, device, seed),
        normal(shape.T, shape.H, device=device, seed=seed),
        shape.V,
    )


def oracle(shape: Shape, x: Entries) -> torch.Tensor:
    """Gᵀ · hidden in float64 with the dense [T, V] gradient G made for a few rows at a time."""
    out = torch.zeros(x.num_rows, x.hidden.shape[1], dtype=torch.float64, device=x.hidden.device)
    for s in spans(shape.T):
        g = torch.zeros(s.stop - s.start, x.num_rows, dtype=torch.float64, device=out.device)
        g.scatter_add_(1, x.ids[s].long(), x.grad[s].double())
        out += g.t() @ x.hidden[s].double()
    return out


def check_bf16(x: Entries, result: torch.Tensor, oracle: torch.Tensor) -> str | None:
    """Sums in float32, rounded once to bfloat16."""
    return apart("the gradient", result, oracle, 4e-3)


def check_rounded_factors(x: Entries, result: torch.Tensor, oracle: torch.Tensor) -> str | None:
    """Factors were rounded to bfloat16 as well, which adds as much again."""
    return apart("the gradient", result, oracle, 8e-3)


def ours(x: Entries, mode: Any, backend: Any) -> torch.Tensor:
    return sparse_weight_grad(x.grad, x.ids, x.hidden, x.num_rows, dtype=torch.bfloat16, mode=mode, backend=backend)


def index_add(x: Entries) -> torch.Tensor:
    out = torch.zeros(x.num_rows, x.hidden.shape[1], device=x.hidden.device)
    rows = x.hidden[:, None, :].float() * x.grad[:, :, None]
    return out.index_add_(0, x.ids.flatten(), rows.flatten(0, 1)).to(torch.bfloat16)


def dense(x: Entries) -> torch.Tensor:
    g = torch.zeros(x.hidden.shape[0], x.num_rows, device=x.hidden.device).scatter_add_(1, x.ids.long(), x.grad)
    return g.to(torch.bfloat16).t() @ x.hidden


def longest_run(x: Entries) -> Row:
    return {"longest_run": int(x.ids.flatten().bincount().max())}


def providers(shape: Shape, device: torch.device) -> list[Provider]:
    found = []
    for backend in our_backends(shape):
        run = functools.partial(ours, mode="sorted", backend=backend)
        found.append(Provider(name=f"ours/{backend}", run=run, check=check_bf16, ours=True, extra=longest_run))
        run = functools.partial(ours, mode="atomic", backend=backend)
        found.append(Provider(name=f"atomic/{backend}", run=run, check=check_bf16, note="ours, in no fixed order", extra=longest_run))
    found.append(Provider(name="index_add", run=index_add, check=check_bf16, note="in no fixed order on a GPU"))
    found.append(Provider(name="dense product", run=dense, check=check_rounded_factors, note="scatter to [T, V], then one product"))
    return found


def work(shape: Shape) -> Work:
    """A hidden row for each entry and the dense gradient written once."""
    entries = 2 * shape.T * shape.K
    return Work(
        read=2 * shape.H * (entries + shape.V) + 8 * entries, flop=2 * entries * shape.H, excluded_peak=2 * shape.V * shape.H
    )  # fmt: skip


SUITE = Suite(
    name="sparse_grad",
    shapes=linear_shapes,
    inputs=inputs,
    set_bytes=lambda shape: 2 * shape.T * (shape.H + 4 * shape.K),
    oracle=oracle,
    providers=providers,
    work=work,
    baseline="index_add",
)


def test_sparse_grad(entry: Entry, timed: Any) -> None:
    timed(entry)


if __name__ == "__main__":
    main(SUITE)
