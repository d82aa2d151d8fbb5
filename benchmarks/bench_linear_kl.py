"""Full-vocabulary forward KL from hidden states, forward and backward: ours, eager, compiled, a chunked head and Liger's."""

from __future__ import annotations

import functools
from typing import Any

import torch
from harness.common import compiled, compiles, installed, our_backends
from harness.heads import LossInputs, Result, chunked_full_head, full_kl, gradients, liger_heads, loss_inputs, same_direction
from harness.oracles import LossOracle, apart, first, full_loss, further, rounding
from harness.runner import main
from harness.suite import Entry, Provider, Suite, Work
from shapes import Shape, pair_shapes

from arkfast.kernels.linear_kl import linear_kl


def shapes(device: str) -> list[Shape]:
    return [shape for shape in pair_shapes(device) if shape.K in (8, 32) and shape.mode == ""]


def oracle(shape: Shape, x: LossInputs) -> LossOracle:
    return full_loss(x.hidden.detach(), x.weight.detach(), x.hidden_t, x.weight_t)


def ours(x: LossInputs, backend: Any) -> Result:
    return gradients(linear_kl(x.hidden, x.weight, x.hidden_t, x.weight_t, backend=backend), x)


def dense(function: Any, x: LossInputs) -> Result:
    return gradients(function(x.hidden, x.weight, x.hidden_t, x.weight_t), x)


def check(x: LossInputs, result: Result, oracle: LossOracle) -> str | None:
    """A chunk's logits may be rounded to bfloat16 before the softmax, and dL/dlogits before the products that give the gradients.

    q − p then has an error of e^(2Δ) − 1 of q and p, Δ half an ulp of the largest score, in the worst of cases, when all errors agree; they
    do not, and a tenth is allowed in norm.
    """
    return first(
        further("the loss", result[0], oracle.loss, rounding(oracle.score)),
        apart("the hidden gradient", result[1], oracle.d_hidden, 0.1),
        apart("the weight gradient", result[2], oracle.d_weight, 0.1),
    )


def providers(shape: Shape, device: torch.device) -> list[Provider]:
    found = [
        Provider(name=f"ours/{backend}", run=functools.partial(ours, backend=backend), check=check, ours=True)
        for backend in our_backends(shape)
    ]
    found.append(Provider(name="eager", run=functools.partial(dense, full_kl), check=check))
    if compiles(device, shape):
        found.append(Provider(name="torch.compile", run=functools.partial(dense, compiled(full_kl)), check=check))
    found.append(Provider(name="chunked head", run=chunked_full_head, check=check, note="stands for published chunked heads"))
    if device.type == "cuda" and installed("liger_kernel"):
        for name, run in liger_heads().items():
            found.append(Provider(name=name, run=run, check=same_direction, note="its own reduction"))
    return found


def work(shape: Shape) -> Work:
    """One product of the teacher's and three of the student's."""
    H, HT = shape.H, shape.HT
    return Work(
        read=2 * (shape.T + shape.V) * (2 * H + HT),
        flop=2 * shape.T * shape.V * (HT + 3 * H),
        excluded_peak=2 * shape.V * H,
    )


SUITE = Suite(
    name="linear_kl",
    shapes=shapes,
    inputs=loss_inputs,
    set_bytes=lambda shape: 2 * (shape.T + shape.V) * (shape.H + shape.HT),
    oracle=oracle,
    providers=providers,
    work=work,
    ceilings=("copy", "mm", "dense"),
    baseline="eager",
)


def test_linear_kl(entry: Entry, timed: Any) -> None:
    timed(entry)


if __name__ == "__main__":
    main(SUITE)
