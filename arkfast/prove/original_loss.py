"""The loss of open-audio-opd, written from its description, id by id, without regard to speed: what ours is compared with.

At each position the ids of the student's list and of the teacher's are put into one table, in which the teacher's value of an id in its own
list wins; both sides are made probabilities over that table, and the loss is KL(teacher‖student). A position counts when at least two of
its ids have a finite value. In the publication's words both lists have log-probabilities; its code has the teacher's raw logits for the
teacher's list and log-probabilities for the rest, which ``mixed`` reproduces.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def union_loss(
    teacher_list: Mapping[int, float],
    on_student_list: Mapping[int, float],
    student: Mapping[int, float],
    *,
    lse: float,
    mixed: bool = False,
    temperature: float = 1.0,
) -> float | None:
    """The loss of one position; None where it does not count.

    Args:
        teacher_list: the teacher's logits at its own best ids.
        on_student_list: its logits at the student's best ids.
        student: the student's scores at all of them.
        lse: log-sum-exp of the teacher's logits over all allowed ids, by which they become log-probabilities.
        mixed: leave the teacher's own list as logits.
        temperature: of both distributions.
    """
    table = {i: value - lse for i, value in on_student_list.items()}
    table |= {i: value if mixed else value - lse for i, value in teacher_list.items()}
    ids = [i for i, value in table.items() if math.isfinite(value)]
    if len(ids) < 2:
        return None
    taught, written = (_log_softmax([side[i] / temperature for i in ids]) for side in (table, student))
    return temperature**2 * math.fsum(math.exp(p) * (p - q) for p, q in zip(taught, written, strict=True))


def _log_softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    total = top + math.log(math.fsum(math.exp(value - top) for value in values))
    return [value - total for value in values]
