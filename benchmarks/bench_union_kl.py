"""The student's block, forward and backward, from given teacher scores: our sparse head, and the dense one eager and compiled.

The ceiling "dense" is what no dense head can undercut: its three products alone.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from harness.common import compiled, compiles, our_backends
from harness.heads import LossInputs, Result, dense_union_kl, gradients, loss_inputs
from harness.oracles import LossOracle, loss_complaint, sparse_loss
from harness.runner import main
from harness.suite import Entry, Provider, Suite, Work
from shapes import Shape, linear_shapes

from arkfast.kernels import opd_union_kl


def inputs(shape: Shape, device: torch.device, seed: int) -> LossInputs:
    """A small teacher: only its scores matter here."""
    sized = Shape(T=shape.T, V=shape.V, H=shape.H, HT=64, K=shape.K)
    return loss_inputs(sized, device, seed)


def oracle(shape: Shape, x: LossInputs) -> LossOracle:
    return sparse_loss(x.hidden.detach(), x.weight.detach(), x.student_ids, x.teacher_ids, x.teacher_scores)


def ours(x: LossInputs, backend: Any) -> Result:
    out = opd_union_kl(x.hidden, x.weight, x.student_ids, x.teacher_ids, x.teacher_scores, backend=backend)
    return gradients(out.loss, x)


def dense(function: Any, x: LossInputs) -> Result:
    return gradients(function(x.hidden, x.weight, x.student_ids, x.teacher_ids, x.teacher_scores), x)


def check_exact(x: LossInputs, result: Result, oracle: LossOracle) -> str | None:
    return loss_complaint(result, oracle, exact=True)


def check_rounded(x: LossInputs, result: Result, oracle: LossOracle) -> str | None:
    return loss_complaint(result, oracle, exact=False)


def providers(shape: Shape, device: torch.device) -> list[Provider]:
    found = [
        Provider(name=f"ours/{backend}", run=functools.partial(ours, backend=backend), check=check_exact, ours=True)
        for backend in our_backends(shape)
    ]
    found.append(Provider(name="dense eager", run=functools.partial(dense, dense_union_kl), check=check_rounded))
    if compiles(device, shape):
        found.append(Provider(name="dense compiled", run=functools.partial(dense, compiled(dense_union_kl)), check=check_rounded))
    return found


def work(shape: Shape) -> Work:
    """Each id's row of the weight once, hidden states and their gradient, and the dense gradient written once."""
    entries = 2 * shape.T * shape.K
    return Work(
        read=2 * shape.H * (entries + 2 * shape.T + shape.V) + 12 * entries,
        flop=6 * entries * shape.H,
        excluded_peak=2 * shape.V * shape.H,
    )


SUITE = Suite(
    name="union_kl",
    shapes=linear_shapes,
    inputs=inputs,
    set_bytes=lambda shape: 2 * (shape.T + shape.V) * shape.H,
    oracle=oracle,
    providers=providers,
    work=work,
    ceilings=("copy", "dense"),
    baseline="dense eager",
)


def test_union_kl(entry: Entry, timed: Any) -> None:
    timed(entry)


if __name__ == "__main__":
    main(SUITE)
