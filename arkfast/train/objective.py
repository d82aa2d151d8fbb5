"""The loss of stage opd and its rollouts, as the flags choose them."""

from __future__ import annotations

from typing import TypedDict

from arkfast.distill import Guards, Objective, Weights
from arkfast.engine import RolloutOptions
from arkfast.engine.sampling import step_seed
from arkfast.train.config import TrainConfig


def objective_of(config: TrainConfig) -> Objective:
    """What the student is drawn towards at a position."""
    return Objective(
        divergence=config.divergence,
        beta=config.jsd_beta,
        support=config.support,
        tail=config.tail_bucket,
        kind=config.opd_objective,
        control_variate=config.control_variate,
    )


def guards_of(config: TrainConfig) -> Guards:
    """What rollouts are guarded against."""
    return Guards(empty=config.empty_rollout, loops=config.loop_guard, length_ratio=config.length_guard)


def weights_of(config: TrainConfig) -> Weights:
    """How much each position weighs."""
    return Weights(end=config.end_weight, decay=config.position_decay)


def decoding_of(config: TrainConfig, *, step: int) -> RolloutOptions:
    """How the rollouts of a step are drawn; with fresh noise when an utterance comes round again."""
    return {
        "max_new_tokens": config.asr_opd_max_new_tokens,
        "n": config.rollouts_per_prompt,
        "temperature": config.rollout_temperature,
        "top_p": config.rollout_top_p,
        "top_k": config.rollout_top_k,
        "seed": step_seed(config.seed, step),
    }


class Reports(TypedDict):
    """Arguments of ``TeacherRequest``."""

    lse_temperature: float | None
    sampled: bool
    states: bool


def reports_of(config: TrainConfig) -> Reports:
    """What the loss needs of the teacher besides its lists."""
    objective = objective_of(config)
    opd = config.stage == "opd"
    return {
        "lse_temperature": config.opd_temperature if opd and objective.needs_lse else None,
        "sampled": opd and objective.needs_sampled,
        "states": opd and objective.needs_states,
    }
