"""Exact top-k of logit rows: ours, torch.topk, a stable sort, torch.compile and FlashInfer, on logits that are in memory already.

The mode "lse" asks for the log-sum-exp too; "rollout" is one decoding step of few rows, as a CUDA graph as well.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from harness.common import SPREAD, compiled, compiles, installed, normal, our_backends
from harness.oracles import TopOracle, first, further, top
from harness.runner import main
from harness.suite import Entry, Provider, Suite, Work
from shapes import POSITIONS, Shape, row_shapes

from arkfast.kernels import topk_lse

Result = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def inputs(shape: Shape, device: torch.device, seed: int) -> torch.Tensor:
    return normal(shape.T, shape.V, device=device, seed=seed, scale=SPREAD)


def oracle(shape: Shape, logits: torch.Tensor) -> TopOracle:
    return top(logits, shape.K)


def check_exact(logits: torch.Tensor, result: Result, oracle: TopOracle) -> str | None:
    """Values and ids, ties included; a log-sum-exp to 2e-6 of 1 + the largest logit."""
    values, ids, lse = (None if part is None else part[oracle.rows] for part in result)
    assert values is not None
    assert ids is not None
    if not torch.equal(ids.long(), oracle.ids):
        return f"{int((ids.long() != oracle.ids).sum())} ids differ from the stable sort's"
    return first(further("a value", values, oracle.values, 0.0), lse_complaint(lse, oracle))


def check_values(logits: torch.Tensor, result: Result, oracle: TopOracle) -> str | None:
    """Values, and ids that have them: the order of ties is not promised."""
    values, ids, lse = (None if part is None else part[oracle.rows] for part in result)
    assert values is not None
    assert ids is not None
    return first(
        further("a value", values.float(), oracle.values, 0.0),
        further("the logit of an id", logits[oracle.rows].gather(1, ids.long()).float(), oracle.values, 0.0),
        None if all(len(set(row)) == len(row) for row in ids.tolist()) else "an id is given twice",
        lse_complaint(lse, oracle),
    )


def lse_complaint(lse: torch.Tensor | None, oracle: TopOracle) -> str | None:
    return None if lse is None else further("the log-sum-exp", lse, oracle.lse, 2e-6 * (1 + oracle.values[:, 0].abs()))


def eager(logits: torch.Tensor, k: int, need_lse: bool) -> Result:
    values, ids = logits.topk(k, dim=1)
    return values, ids, torch.logsumexp(logits.float(), dim=1) if need_lse else None


def ours(logits: torch.Tensor, k: int, need_lse: bool, backend: Any) -> Result:
    found = topk_lse(logits, k, need_lse=need_lse, backend=backend)
    return found.values, found.ids, found.lse


def stable_sort(logits: torch.Tensor, k: int) -> Result:
    values, ids = (logits.float() + 0.0).sort(dim=1, descending=True, stable=True)
    return values[:, :k].clone(), ids[:, :k].clone(), None


def flashinfer(logits: torch.Tensor, k: int) -> Result:
    from flashinfer import top_k

    values, ids = top_k(logits, k, sorted=True, deterministic=True)
    return values, ids, None


def providers(shape: Shape, device: torch.device) -> list[Provider]:
    K, need_lse, rollout = shape.K, shape.mode == "lse", shape.mode == "rollout"
    found = [
        Provider(
            name=f"ours/{backend}",
            run=functools.partial(ours, k=K, need_lse=need_lse, backend=backend),
            check=check_exact,
            ours=True,
            graph=rollout and backend == "triton",
        )
        for backend in our_backends(shape)
    ]
    plain = functools.partial(eager, k=K, need_lse=need_lse)
    found.append(Provider(name="torch.topk", run=plain, check=check_values, note="ties in any order", graph=rollout))
    if compiles(device, shape):
        found.append(Provider(name="torch.compile", run=compiled(plain), check=check_values, note="ties in any order"))
    if not need_lse:
        if shape.T not in POSITIONS[-1:]:  # where it takes seconds and tens of gigabytes
            found.append(Provider(name="stable sort", run=functools.partial(stable_sort, k=K), check=check_exact))
        if device.type == "cuda" and installed("flashinfer"):
            found.append(Provider(name="FlashInfer", run=functools.partial(flashinfer, k=K), check=check_values, note="deterministic"))
    return found


def work(shape: Shape) -> Work:
    return Work(read=shape.T * shape.V * 2 + shape.T * shape.K * 8)


SUITE = Suite(
    name="row_topk",
    shapes=functools.partial(row_shapes, modes=("", "lse", "rollout")),
    inputs=inputs,
    set_bytes=lambda shape: shape.T * shape.V * 2,
    oracle=oracle,
    providers=providers,
    work=work,
    baseline="torch.topk",
)


def test_row_topk(entry: Entry, timed: Any) -> None:
    timed(entry)


if __name__ == "__main__":
    main(SUITE)
