"""The whole loss section of a distillation step: the teacher's top-k and scores, the student's loss, and its gradients.

Ours and eager compute the same loss. The full-vocabulary heads compute another one, for the same purpose; the published trainer's own runs
at its own step's shape, its lists and element writes included.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from harness.common import compiled, compiles, installed, our_backends
from harness.heads import (
    LossInputs,
    Result,
    chunked_full_head,
    dense_block,
    exact_scores,
    gradients,
    liger_heads,
    loss_inputs,
    original,
    original_complaint,
    same_direction,
)
from harness.oracles import BF16_ULP, LossOracle, first, full_loss, further, loss_complaint, rounding, sparse_loss
from harness.runner import main
from harness.suite import Entry, Provider, Suite, Work
from shapes import Shape, pair_shapes

from arkfast.kernels import linear_topk_lse, opd_union_kl

WORKSPACE_MB = 512
FULL_NOTE = "full-vocabulary KL: another objective"


class Oracles:
    """Both objectives, the second made when first asked for."""

    def __init__(self, x: LossInputs) -> None:
        self.x = x
        self.union = sparse_loss(x.hidden.detach(), x.weight.detach(), x.student_ids, x.teacher_ids, x.teacher_scores)

    @functools.cached_property
    def full(self) -> LossOracle:
        return full_loss(self.x.hidden.detach(), self.x.weight.detach(), self.x.hidden_t, self.x.weight_t)


def ours(x: LossInputs, k: int, backend: Any) -> tuple[torch.Tensor, ...]:
    """The loss, its gradients, and the teacher's ids and scores that it was made of."""
    top = linear_topk_lse(x.hidden_t, x.weight_t, k, gather_ids=x.student_ids, workspace_mb=WORKSPACE_MB, backend=backend)
    assert top.gathered is not None
    scores = torch.cat([top.gathered, top.values], dim=1)
    loss = opd_union_kl(x.hidden, x.weight, x.student_ids, top.ids, scores, backend=backend).loss
    return *gradients(loss, x), top.ids, scores


def dense(function: Any, k: int, x: LossInputs) -> Result:
    return gradients(function(x.hidden, x.weight, x.hidden_t, x.weight_t, x.student_ids, k), x)


def check_ours(x: LossInputs, result: tuple[torch.Tensor, ...], oracles: Oracles) -> str | None:
    """The teacher's ids and scores, then the loss on them.

    Of logits that rounding to bfloat16 cannot tell apart any may be the top-k's last, in both of the sets compared: a score may lie two
    ulps below the k-th. Scores are float32 sums of H products, whose error is far below 2⁻²⁴ · H of the largest magnitude.
    """
    ids, scores = result[3], result[4]
    k = ids.shape[1]
    exact = exact_scores(x, torch.cat([x.student_ids, ids], dim=1))
    kth = x.teacher_scores[:, k:].min(dim=1, keepdim=True).values
    below = (exact[:, k:] < kth - 2 * kth.abs() * BF16_ULP).sum()
    return first(
        f"{int(below)} of the teacher's ids are not among its top-k" if below else None,
        further("a teacher score", scores, exact, exact.abs().max() * x.hidden_t.shape[1] * 2.0**-24),
        loss_complaint(result[:3], sparse_loss(x.hidden.detach(), x.weight.detach(), x.student_ids, ids, scores), exact=True),
    )


def check_rounded(x: LossInputs, result: Result, oracles: Oracles) -> str | None:
    return loss_complaint(result, oracles.union, exact=False)


def check_full(x: LossInputs, result: Result, oracles: Oracles) -> str | None:
    return first(further("the loss", result[0], oracles.full.loss, rounding(oracles.full.score)), same_direction(x, result, oracles.full))


def check_direction(x: LossInputs, result: Result, oracles: Oracles) -> str | None:
    return same_direction(x, result, oracles.full)


def providers(shape: Shape, device: torch.device) -> list[Provider]:
    K = shape.K
    found = [
        Provider(name=f"ours/{backend}", run=functools.partial(ours, k=K, backend=backend), check=check_ours, ours=True)
        for backend in our_backends(shape)
    ]
    found.append(Provider(name="eager", run=functools.partial(dense, dense_block, K), check=check_rounded))
    if shape.mode == "original":
        note = "full logits, Python lists, mixed scales"
        return [*found, Provider(name="original", run=original, check=original_complaint, note=note)]
    if compiles(device, shape):
        found.append(Provider(name="torch.compile", run=functools.partial(dense, compiled(dense_block), K), check=check_rounded))
    found.append(Provider(name="chunked head", run=chunked_full_head, check=check_full, note=FULL_NOTE))
    if device.type == "cuda" and installed("liger_kernel"):
        for name, run in liger_heads().items():
            found.append(Provider(name=name, run=run, check=check_direction, note=FULL_NOTE))
    return found


def work(shape: Shape) -> Work:
    """The teacher's product and the student's gathered rows."""
    entries = 2 * shape.T * shape.K
    return Work(
        read=2 * (shape.T + shape.V) * shape.HT + 2 * shape.H * (entries + 2 * shape.T + shape.V),
        flop=2 * shape.T * shape.V * shape.HT + 6 * entries * shape.H,
        excluded_peak=2 * shape.V * shape.H,
    )


SUITE = Suite(
    name="loss_block",
    shapes=pair_shapes,
    inputs=loss_inputs,
    set_bytes=lambda shape: 2 * (shape.T + shape.V) * (shape.H + shape.HT),
    oracle=lambda shape, x: Oracles(x),
    providers=providers,
    work=work,
    ceilings=("copy", "mm", "dense"),
    baseline="eager",
)


def test_loss_block(entry: Entry, timed: Any) -> None:
    timed(entry)


if __name__ == "__main__":
    main(SUITE)
