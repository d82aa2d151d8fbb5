"""A divergence between the whole distributions of two logit buffers, and its gradient, in plain torch.

Both models' logits come in one chunk at a time. The whole vocabulary is the union of the ids that are not dead, so the definitions are
``union_kl``'s. Letters: n rows, V columns, p the teacher's distribution, q the student's.
"""

from __future__ import annotations

import torch

from arkfast.kernels.union_kl.reference import divergence_rows


def rows_and_grad(
    student: torch.Tensor, teacher: torch.Tensor, dead: torch.Tensor | None, *, tau: float, divergence: str, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(τ² · D(p, q) [n], its gradient to the student's logits [n, V]), p = softmax(teacher/τ) and q = softmax(student/τ) over columns that
    are not dead (``dead`` [V], or [n, V] for each row); in float32 or wider."""
    alive = torch.ones(student.shape[1], dtype=torch.bool, device=student.device) if dead is None else ~dead
    inside = alive.expand(student.shape)
    valid = torch.ones(student.shape[0], dtype=torch.bool, device=student.device)
    return divergence_rows(teacher, student, inside, valid, tau=tau, divergence=divergence, beta=beta)
