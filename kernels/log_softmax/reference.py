"""Log-softmax of one row chunk of a linear layer at chosen ids, and its gradient, in plain torch.

Knows one chunk; knows neither chunking nor autograd. Letters: n rows, H features, V outputs, U ids a row. The logits are computed again
for the gradient, so that nothing of size V outlives a chunk.
"""

from __future__ import annotations

import torch

NEG_INF = float("-inf")


def scaled_logits(hidden: torch.Tensor, weight: torch.Tensor, tau: float, dead: torch.Tensor | None) -> torch.Tensor:
    """z / τ [n, V] with dead columns at −inf; hidden and weight are in one dtype, float32 or wider."""
    logits = (hidden @ weight.t()).div_(tau)
    return logits if dead is None else logits.masked_fill_(dead, NEG_INF)


def forward(
    hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, tau: float, dead: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log softmax(z/τ) at ids [n, U], 0 where an id is negative; log-sum-exp of z/τ [n])."""
    logits = scaled_logits(hidden, weight, tau, dead)
    lse = logits.logsumexp(1)
    return (logits.gather(1, ids.clamp_min(0)) - lse[:, None]).masked_fill_(ids < 0, 0.0), lse


def logits_grad(
    grad: torch.Tensor, grad_lse: torch.Tensor | None, logits: torch.Tensor, lse: torch.Tensor, ids: torch.Tensor, tau: float
) -> torch.Tensor:
    """dL/dz [n, V] = (scatter(g) + (g_lse − Σ g) · softmax(z/τ)) / τ; entries of ids that are negative or masked carry no gradient."""
    off = (ids < 0) | (logits.gather(1, ids.clamp_min(0)) == NEG_INF)
    grad = grad.masked_fill(off, 0.0)
    weight_of_p = -grad.sum(1) if grad_lse is None else grad_lse - grad.sum(1)
    d_logits = (logits - lse[:, None]).exp_().mul_(weight_of_p[:, None])
    return d_logits.scatter_add_(1, ids.clamp_min(0), grad).div_(tau)
