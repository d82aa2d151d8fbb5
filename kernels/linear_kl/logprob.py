"""``linear_logprob``: log-probability of sampled tokens and entropy of their distributions, from hidden states.

Each row has one target; the row kernel, the chunks and the gradient are those of ``log_softmax``.
"""

from __future__ import annotations

import torch

from arkfast.kernels.common.backend import Backend
from arkfast.kernels.common.checks import check_flag, check_ids, check_shapes
from arkfast.kernels.log_softmax.linear import linear_stats


def linear_logprob(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    *,
    entropy: bool = False,
    tau: float = 1.0,
    blocked: torch.Tensor | None = None,
    ranges: torch.Tensor | None = None,
    chunk_rows: int | None = None,
    backend: Backend = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """log q(target), q = softmax(hidden @ weight.T / τ), with gradients to ``hidden`` and ``weight``: what policy-gradient losses,
    importance ratios and sampled KL estimates are made of.

    Args:
        hidden: [T, H] bfloat16, float16, float32 or float64.
        weight: [V, H], any of the same dtypes.
        target: [T] int32 or int64 in [0, V); a negative id gives 0 and no gradient.
        entropy: also return −Σ q log q of each row, [T], with gradient.
        tau: temperature.
        blocked: [b] int32 ids that have probability 0; a blocked target gives −inf and no gradient. Ids outside [0, V) have no effect.
        ranges: [T, R, 2] int32 half-open ranges [start, stop) of each row: an id in none of them counts as blocked in that row, and one
            that is blocked stays so inside them. A row that is left without any id gives NaN.
        chunk_rows: rows of logits that exist at once; None takes what 128 MB of float32 hold (256 MB on a GPU).

    Returns:
        [T] log-probabilities in float32 (float64 when an input is float64), or (log-probabilities, entropy).

    Raises:
        ValueError: on wrong shapes, dtypes, tau or backend.
    """
    op = "linear_logprob"
    check_flag(op, entropy=entropy)
    check_shapes(op, hidden=(hidden, "T H"), target=(target, "T"))
    check_ids(op, target=target)
    stats = linear_stats(
        op,
        hidden,
        weight,
        target[:, None],
        tau=tau,
        blocked=blocked,
        ranges=ranges,
        need_entropy=entropy,
        chunk_rows=chunk_rows,
        backend=backend,
    )
    logp = stats.logp[:, 0]
    if not entropy:
        return logp
    assert stats.entropy is not None
    return logp, stats.entropy
