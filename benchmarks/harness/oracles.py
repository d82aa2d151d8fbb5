"""Right answers, in float64 from the definitions, and how far from them an implementation may be. Shares no code with any op.

Where only some rows of a large answer are compared they are the first, the last and some between: an overflown offset shows at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

CHUNK = 256
"""Rows of float64 logits that exist at once: 0.3 GB at V = 152k."""
BF16_ULP = 2.0**-7
"""Distance of neighbouring bfloat16 numbers, relative to the power of two below them; a rounded number is at most half of it away."""


def some_rows(total: int, device: torch.device) -> torch.Tensor:
    """Row numbers [at most 96] int64: the first 32, the last 32 and 32 between."""
    if total <= 96:
        return torch.arange(total, device=device)
    between = torch.linspace(32, total - 33, 32, device=device).long()
    return torch.cat([torch.arange(32, device=device), between, torch.arange(total - 32, total, device=device)])


def spans(total: int, step: int = CHUNK) -> Iterator[slice]:
    """Slices of ``step`` rows."""
    yield from (slice(start, min(start + step, total)) for start in range(0, total, step))


def logits64(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """hidden [n, H] · weight [V, H] in float64."""
    return hidden.double() @ weight.double().t()


def off(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """‖got − wanted‖ / ‖wanted‖ in float64."""
    wanted = wanted.double()
    return ((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-300)).item()


def apart(what: str, got: torch.Tensor, wanted: torch.Tensor, most: float) -> str | None:
    """A complaint when ``got`` is relatively further than ``most`` from ``wanted``, in norm; NaN is."""
    error = off(got, wanted)
    return None if error <= most else f"{what} is off by {error:.1e} of its norm, at most {most:.1e} is right"


def further(what: str, got: torch.Tensor, wanted: torch.Tensor, most: torch.Tensor | float) -> str | None:
    """A complaint when an element of ``got`` is more than ``most`` from ``wanted``; equal infinities are not."""
    got, wanted = got.double(), wanted.double()
    error = torch.where(got == wanted, 0.0, (got - wanted).abs())
    return None if bool((error <= most).all()) else f"{what} is off by up to {(error - most).max().item():.1e} more than its bound"


def first(*complaints: str | None) -> str | None:
    """The first complaint there is."""
    return next((one for one in complaints if one), None)


class TopOracle(NamedTuple):
    """Top-k of some rows of a logits buffer, values down and then lowest id."""

    rows: torch.Tensor
    values: torch.Tensor
    ids: torch.Tensor
    lse: torch.Tensor


def top(logits: torch.Tensor, k: int) -> TopOracle:
    """The order by a stable sort, on some rows of [T, V]."""
    rows = some_rows(logits.shape[0], logits.device)
    x = logits[rows].float() + 0.0
    values, ids = x.sort(dim=1, descending=True, stable=True)
    return TopOracle(rows, values[:, :k].clone(), ids[:, :k].clone(), torch.logsumexp(x.double(), dim=1))


class LossOracle(NamedTuple):
    """A mean loss and its gradients."""

    loss: torch.Tensor
    d_hidden: torch.Tensor
    d_weight: torch.Tensor
    score: float
    """Largest absolute student or teacher score, which bounds what rounding logits costs."""


def forward_kl_rows(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """KL(softmax(teacher) ‖ softmax(student)) of each row; −inf in both is outside."""
    log_p, log_q = teacher.log_softmax(1), student.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).nan_to_num(0.0).sum(1)


def sparse_loss(
    hidden: torch.Tensor, weight: torch.Tensor, student_ids: torch.Tensor, teacher_ids: torch.Tensor, teacher_scores: torch.Tensor
) -> LossOracle:
    """Mean forward KL on the union of both id lists (each id once), by dense autograd over float64 logits of a few rows at a time.

    Args:
        teacher_scores: [T, Ks + Kt], equal wherever an id is in both lists.
    """
    total, vocabulary = hidden.shape[0], weight.shape[0]
    loss = hidden.new_zeros((), dtype=torch.float64)
    w = weight.double()
    d_hidden, d_weight = torch.zeros(hidden.shape, dtype=torch.float64, device=hidden.device), torch.zeros_like(w)
    score = teacher_scores.abs().max().item()
    for span in spans(total):
        ids = torch.cat([student_ids[span], teacher_ids[span]], dim=1).long()
        teacher = torch.full((ids.shape[0], vocabulary), float("-inf"), dtype=torch.float64, device=hidden.device)
        teacher.scatter_(1, ids, teacher_scores[span].double())
        h = hidden[span].double().requires_grad_()
        with torch.enable_grad():
            logits = h @ w.t()
            logits.retain_grad()
            rows = forward_kl_rows(teacher, logits.masked_fill(teacher.isinf(), float("-inf")))
            (rows.sum() / total).backward()
        assert h.grad is not None
        assert logits.grad is not None
        score = max(score, logits.detach().gather(1, ids).abs().max().item())
        loss += rows.detach().sum() / total
        d_hidden[span] = h.grad
        d_weight += logits.grad.t() @ h.detach()
    return LossOracle(loss, d_hidden, d_weight, score)


def full_loss(hidden: torch.Tensor, weight: torch.Tensor, hidden_t: torch.Tensor, weight_t: torch.Tensor) -> LossOracle:
    """Mean forward KL over the whole vocabulary with its gradients, a few rows at a time."""
    total, loss, score = hidden.shape[0], hidden.new_zeros((), dtype=torch.float64), 0.0
    w, wt = weight.double(), weight_t.double()
    d_hidden, d_weight = torch.zeros(hidden.shape, dtype=torch.float64, device=hidden.device), torch.zeros_like(w)
    for span in spans(total):
        h, teacher = hidden[span].double(), hidden_t[span].double() @ wt.t()
        logits = h @ w.t()
        score = max(score, logits.abs().max().item(), teacher.abs().max().item())
        loss += forward_kl_rows(teacher, logits).sum() / total
        # ∂KL(p‖q)/∂z = q − p.
        g = (logits.softmax(1) - teacher.softmax(1)) / total
        d_hidden[span] = g @ w
        d_weight += g.t() @ h
    return LossOracle(loss, d_hidden, d_weight, score)


def rounding(score: float) -> float:
    """How far rounding both models' logits to bfloat16 moves a KL, at most: it changes by less than 2 · max|Δz| for each model."""
    return 4 * score * BF16_ULP / 2


def loss_complaint(got: tuple[torch.Tensor, torch.Tensor, torch.Tensor], oracle: LossOracle, *, exact: bool) -> str | None:
    """(loss, d_hidden, d_weight) against the oracle.

    ``exact``: scores are float32 dot products of bfloat16 inputs, so the loss is right to 1e-5, and gradients to what rounding them once to
    bfloat16 costs: half an ulp a value, 4e-3 in norm. Otherwise logits were rounded to bfloat16 before the softmax: Δz moves the loss by at
    most ``rounding`` and a probability by a factor of e^(2 max|Δz|); the gradient is a difference of probabilities of norm below √2, so its
    relative error has no such bound, and a quarter is allowed, which a wrong support or a wrong sign exceeds.
    """
    loss, d_hidden, d_weight = got
    if not exact:
        bound = rounding(oracle.score)
        return first(
            further("the loss", loss, oracle.loss, bound),
            apart("the hidden gradient", d_hidden, oracle.d_hidden, 0.25),
            apart("the weight gradient", d_weight, oracle.d_weight, 0.25),
        )
    most = 4e-3 if d_hidden.dtype != torch.float32 else 1e-5
    return first(
        further("the loss", loss, oracle.loss, 1e-5 * oracle.loss.abs().item()),
        apart("the hidden gradient", d_hidden, oracle.d_hidden, most),
        apart("the weight gradient", d_weight, oracle.d_weight, most),
    )
