"""The phases of a step, in the order they come: what the code, the log, the progress bar and the report's page call each."""

from __future__ import annotations

from typing import NamedTuple


class Phase(NamedTuple):
    """A stretch of a step that is timed."""

    name: str
    """What the code times it under, as in ``phase("encode")``."""
    logged: str
    """Its name in ``metrics.jsonl``, the original's where that has one. Of several ranks the slowest one's seconds."""
    label: str
    """What the report's page calls it."""
    short: str | None
    """What the progress bar calls it; None: the bar leaves it out."""
    part_of: str | None
    """The phase whose time includes this one's; None for the step, which is the whole."""
    compute: bool = False
    """Whether it counts towards the original's ``compute``."""


STEP = Phase("step", "time_per_step", "step", None, None)
PHASES = (
    STEP,
    Phase("data_wait", "data_wait_max", "waiting for data", "data", "step"),
    Phase("move_batch", "move_batch_max", "moving the batch", None, "step"),
    Phase("encode", "encode_time_max", "student's encoder", "encode", "step", compute=True),
    Phase("rollout", "rollout_time_max", "rollout", "rollout", "step", compute=True),
    Phase("teacher", "teacher_time_max", "teacher", "teacher", "step", compute=True),
    Phase("student_score", "student_score_time_max", "scores and loss", "loss", "step", compute=True),
    Phase("backward", "backward_max", "backward", "backward", "step"),
    Phase("optimizer", "optimizer_max", "optimizer", "optimizer", "step"),
)


def phase_named(name: str) -> Phase:
    """The phase that the code times under ``name``."""
    return next(phase for phase in PHASES if phase.name == name)


def parts_of(name: str) -> tuple[Phase, ...]:
    """The phases directly within ``name``, in order. Parts of theirs are left out, so that no time counts twice."""
    return tuple(phase for phase in PHASES if phase.part_of == name)
