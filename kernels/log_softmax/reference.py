"""Log-softmax of logit rows at chosen ids, with log-sum-exp and entropy, and its gradient, in plain torch from the definitions.

Letters: n rows, V columns, U ids a row, z logits, p = softmax(z/τ).
``dead`` is bool, [V] for all rows or [n, V] for each.
"""

from __future__ import annotations

import torch

from arkfast.kernels.common.precision import wide_dtype

NEG_INF = float("-inf")


def scaled(logits: torch.Tensor, tau: float, dead: torch.Tensor | None) -> torch.Tensor:
    """z/τ [n, V] in float32 or wider, dead columns at −inf."""
    x = logits.to(wide_dtype(logits)) / tau
    return x if dead is None else x.masked_fill_(dead, NEG_INF)


def forward(
    logits: torch.Tensor, ids: torch.Tensor, tau: float, dead: torch.Tensor | None, need_entropy: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(log p at ids [n, U], 0 where an id is negative; log-sum-exp of z/τ [n]; entropy −Σ p log p [n] or None)."""
    x = scaled(logits, tau, dead)
    lse = x.logsumexp(1)
    logp = (x.gather(1, ids.clamp_min(0)) - lse[:, None]).masked_fill_(ids < 0, 0.0)
    entropy = torch.special.entr((x - lse[:, None]).exp_()).sum(1) if need_entropy else None
    return logp, lse, entropy


def live_grad(grad: torch.Tensor, logp: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The upstream gradient [n, U] without the entries of ids that are negative or have no probability."""
    return grad.masked_fill((ids < 0) | (logp == NEG_INF), 0.0)


def idle_rows(grad: torch.Tensor, grad_lse: torch.Tensor | None, grad_entropy: torch.Tensor | None) -> torch.Tensor:
    """[n] bool: rows to which nothing comes upstream, so that dL/dz is 0 whatever their logits are; ``grad`` as ``live_grad`` gives it."""
    idle = (grad == 0).all(1)
    for more in (grad_lse, grad_entropy):
        if more is not None:
            idle &= more == 0
    return idle


def backward(
    grad: torch.Tensor,
    grad_lse: torch.Tensor | None,
    grad_entropy: torch.Tensor | None,
    idle: torch.Tensor,
    logits: torch.Tensor,
    lse: torch.Tensor,
    entropy: torch.Tensor | None,
    ids: torch.Tensor,
    tau: float,
    dead: torch.Tensor | None,
) -> torch.Tensor:
    """dL/dz [n, V] = (scatter(g) + (g_lse − Σ g) · p − g_H · p · (log p + H)) / τ, with ``grad`` as ``live_grad`` gives it and zeros in
    the rows that are ``idle``."""
    weight_of_p = -grad.sum(1) if grad_lse is None else grad_lse - grad.sum(1)
    logp = scaled(logits, tau, dead) - lse[:, None]
    p = logp.exp()
    d_logits = p * weight_of_p[:, None]
    if grad_entropy is not None and entropy is not None:
        d_logits -= grad_entropy[:, None] * (p * (logp + entropy[:, None])).masked_fill_(p == 0, 0.0)
    return d_logits.scatter_add_(1, ids.clamp_min(0), grad).div_(tau).masked_fill_(idle[:, None], 0.0)
