"""The reverse divergence estimated from the produced tokens alone, as a policy gradient.

∇KL(q‖p) at a position is the mean over tokens y drawn from q of −A(y) ∇log q(y), with the advantage A(y) = log p(y) − log q(y). One token
a position is an estimate of much noise; a control variate b that does not depend on y, taken from A, leaves its mean as it is and removes
some of it. Here b is −KL(q‖p) with all ids outside both top-k lists taken together, near what A is on average. What a token does to later
positions is no part of it: each position is judged by itself, as with the divergences.
"""

from __future__ import annotations

import torch

from arkfast.distill.objective import Divergences, Objective, listed_ids, tail_rows
from arkfast.kernels import linear_log_softmax
from arkfast.records import AllowedTokens, InputError, Rollout, TeacherScores


def policy_gradient(
    objective: Objective,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    rollout: Rollout,
    scores: TeacherScores,
    *,
    weights: torch.Tensor | None = None,
    blocked: torch.Tensor | None,
    allowed: AllowedTokens | None,
) -> Divergences:
    """Σ −A log q(y) over the produced positions that the teacher could score; A has no gradient.

    The tokens have to be drawn from q itself, at temperature 1 and from all ids.

    Args:
        objective: its ``kind`` and whether there is a control variate.
        hidden: [N, H] the student's states that predict the produced tokens.
        weight: [V, H] its head.
        rollout: what it produced, with its top-k ids.
        scores: the teacher's view, with ``sampled_scores`` and ``lse`` where the advantage is the teacher's.
        weights, blocked, allowed: as ``divergences`` takes them.

    Raises:
        InputError: the objective needs more of the teacher than it gives.
    """
    assert rollout.topk_ids is not None, "a rollout for distillation keeps its top-k ids"
    row, place = rollout.packed_index()
    tokens = rollout.tokens[row, place]
    ranges = None if allowed is None else allowed.row_ranges(place)
    ids = listed_ids("union", rollout, scores)
    # The lists' log-probabilities come from the product that the tokens' need in any case.
    every = linear_log_softmax(hidden, weight, torch.cat([tokens[:, None].to(ids.dtype), ids], 1), blocked=blocked, ranges=ranges)
    log_q, valid = every[:, 0], scores.valid
    with torch.no_grad():
        if objective.kind == "fixed_advantage":
            advantage = torch.full_like(log_q, -1.0)
        elif scores.sampled_scores is None or scores.lse is None:
            raise InputError("--opd_objective policy_gradient: the teacher reports no probability of the produced tokens; give another one")
        else:
            advantage = scores.sampled_scores - scores.lse - log_q
            valid = valid & advantage.isfinite()
            if objective.control_variate:
                advantage = advantage + tail_rows(ids, every[:, 1:], scores, scores.lse, divergence="reverse_kl").rows
    # Mask, don't multiply: what is left out may be −inf, and −inf · 0 is no number.
    rows = (-advantage.masked_fill(~valid, 0.0) * log_q.masked_fill(~valid, 0.0)).to(log_q.dtype)
    return Divergences((rows if weights is None else rows * weights).sum(), valid, torch.ones_like(valid, dtype=torch.int32))
