"""How much arithmetic a step does, and what the device could do.

Counted are the forward and backward passes over what the loss needs: the student three times a forward (its head touches few rows and is
left out), the teacher once, with its whole head, and each prompt once for all its rollouts. Decoding is not counted, so the share of the
peak says what the step as a whole makes of the device.
"""

from __future__ import annotations

import torch

from arkfast.models.family import Cost
from arkfast.records import Batch

PEAKS = {"B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Dense bfloat16 products, operations a second, as NVIDIA's data sheets give them; the first name found in a device's name counts."""


def peak(device: torch.device) -> float | None:
    """Operations a second that the device is sold with, or None where it is not known (a CPU has no one figure)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((value for key, value in PEAKS.items() if key in name), None)


def step_operations(batch: Batch, answers: float, *, rollouts: int, student: Cost, teacher: Cost | None) -> float:
    """Operations of a step on one batch, two for each multiply-add.

    Args:
        batch: what is read; it must still lie in main memory.
        answers: tokens of all rollouts together.
        rollouts: of each prompt.
        student: what is trained.
        teacher: what scores the answers; None: nothing does, or its arithmetic is not known.
    """
    operations = 3.0 * student.forward(batch, answers, rollouts=rollouts, head=False)
    return operations if teacher is None else operations + teacher.forward(batch, answers, rollouts=rollouts, head=True)
