"""Log-probabilities of chosen ids: ours, eager, compiled, logsumexp and gather, and Liger's fused cross-entropy.

The mode "rows" reads a buffer of logits once, forward; "linear" starts from hidden states and goes forward and backward, as cross-entropy
does.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from harness.common import SPREAD, compiled, compiles, installed, linear_input, normal, our_backends, zipf_ids
from harness.oracles import BF16_ULP, apart, first, further, some_rows, spans
from harness.runner import main
from harness.suite import Entry, Provider, Suite, Work
from shapes import Shape, linear_shapes, ordered, row_shapes

from arkfast.kernels import linear_log_softmax
from arkfast.kernels.log_softmax import row_log_softmax


@dataclass(frozen=True)
class Targets:
    """One target id a row, under a buffer of logits or under a linear layer."""

    ids: torch.Tensor
    logits: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    weight: torch.Tensor | None = None


def shapes(device: str) -> list[Shape]:
    rows = [shape for shape in row_shapes(device, modes=("rows",)) if shape.K in (8, 32)]
    return ordered([*rows, *linear_shapes(device, mode="linear", k=False)])


def inputs(shape: Shape, device: torch.device, seed: int) -> Targets:
    ids = zipf_ids(shape.T, 1, shape.V, device, seed)
    if shape.mode == "rows":
        return Targets(ids, logits=normal(shape.T, shape.V, device=device, seed=seed, scale=SPREAD))
    hidden, weight = linear_input(shape.T, shape.V, shape.H, device, seed)
    return Targets(ids, hidden=hidden.requires_grad_(), weight=weight.requires_grad_())


def oracle(shape: Shape, x: Targets) -> tuple[torch.Tensor, ...]:
    """(log-probabilities,) of some rows, or (mean of all, hidden gradient, weight gradient)."""
    if x.logits is not None:
        rows = some_rows(shape.T, x.ids.device)
        return rows, x.logits[rows].double().log_softmax(1).gather(1, x.ids[rows].long())
    assert x.hidden is not None
    assert x.weight is not None
    w, h = x.weight.detach().double(), x.hidden.detach().double()
    mean, d_hidden, d_weight = h.new_zeros(()), torch.zeros_like(h), torch.zeros_like(w)
    for s in spans(shape.T):
        logp = (h[s] @ w.t()).log_softmax(1)
        mean += logp.gather(1, x.ids[s].long()).sum() / shape.T
        # ∂ log softmax(z)[i] / ∂z = onehot(i) − softmax(z).
        g = logp.exp().neg().scatter_add_(1, x.ids[s].long(), torch.ones_like(logp[:, :1])) / shape.T
        d_hidden[s] = g @ w
        d_weight += g.t() @ h[s]
    return mean, d_hidden, d_weight


def check_rows(x: Targets, result: torch.Tensor, oracle: tuple[torch.Tensor, ...]) -> str | None:
    """2e-6 · (1 + the largest magnitude), what float32 sums of a row cost."""
    rows, wanted = oracle
    return further("a log-probability", result[rows], wanted, 2e-6 * (1 + wanted.abs().max()))


def check_linear(x: Targets, result: tuple[torch.Tensor, ...], oracle: tuple[torch.Tensor, ...]) -> str | None:
    """Logits may be rounded to bfloat16, by half an ulp of at most 16; dL/dlogits too, and then the gradients: 4e-3 in norm each."""
    return first(
        further("the mean", result[0], oracle[0], 16 * BF16_ULP),
        apart("the hidden gradient", result[1], oracle[1], 1.2e-2),
        apart("the weight gradient", result[2], oracle[2], 1.2e-2),
    )


def ours_rows(x: Targets, backend: Any) -> torch.Tensor:
    return row_log_softmax(x.logits, x.ids, backend=backend)


def eager_rows(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return logits.float().log_softmax(1).gather(1, ids.long())


def lse_rows(x: Targets) -> torch.Tensor:
    assert x.logits is not None
    return x.logits.gather(1, x.ids.long()).float() - torch.logsumexp(x.logits.float(), dim=1, keepdim=True)


def with_gradients(mean: torch.Tensor, x: Targets) -> tuple[torch.Tensor, ...]:
    return (mean.detach(), *torch.autograd.grad(mean, (x.hidden, x.weight)))


def ours_linear(x: Targets, backend: Any) -> tuple[torch.Tensor, ...]:
    return with_gradients(linear_log_softmax(x.hidden, x.weight, x.ids, backend=backend).mean(), x)


def eager_linear(hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return eager_rows(hidden @ weight.t(), ids).mean()


def liger_linear(x: Targets) -> tuple[torch.Tensor, ...]:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return with_gradients(-LigerFusedLinearCrossEntropyLoss()(x.weight, x.hidden, x.ids[:, 0].long()), x)


def providers(shape: Shape, device: torch.device) -> list[Provider]:
    rows = shape.mode == "rows"
    run, check = (ours_rows, check_rows) if rows else (ours_linear, check_linear)
    found = [
        Provider(name=f"ours/{backend}", run=functools.partial(run, backend=backend), check=check, ours=True)
        for backend in our_backends(shape)
    ]
    if rows:
        found.append(Provider(name="eager", run=lambda x: eager_rows(x.logits, x.ids), check=check))
        found.append(Provider(name="logsumexp + gather", run=lse_rows, check=check))
        if compiles(device, shape):
            fast_rows = compiled(eager_rows)
            found.append(Provider(name="torch.compile", run=lambda x: fast_rows(x.logits, x.ids), check=check))
        return found
    found.append(Provider(name="eager", run=lambda x: with_gradients(eager_linear(x.hidden, x.weight, x.ids), x), check=check))
    if compiles(device, shape):
        fast = compiled(eager_linear)
        found.append(Provider(name="torch.compile", run=lambda x: with_gradients(fast(x.hidden, x.weight, x.ids), x), check=check))
    if device.type == "cuda" and installed("liger_kernel"):
        found.append(Provider(name="Liger FLCE", run=liger_linear, check=check))
    return found


def work(shape: Shape) -> Work:
    if shape.mode == "rows":
        return Work(read=2 * shape.T * shape.V)
    weight = 2 * shape.V * shape.H
    return Work(read=2 * (2 * shape.T * shape.H + weight), flop=6 * shape.T * shape.V * shape.H, excluded_peak=weight)


SUITE = Suite(
    name="log_softmax",
    shapes=shapes,
    inputs=inputs,
    set_bytes=lambda shape: 2 * shape.T * shape.V if shape.mode == "rows" else 2 * (shape.T + shape.V) * shape.H,
    oracle=oracle,
    providers=providers,
    work=work,
    ceilings=("copy", "dense"),
    baseline="eager",
)


def test_log_softmax(entry: Entry, timed: Any) -> None:
    timed(entry)


if __name__ == "__main__":
    main(SUITE)
