"""Distillation: the teacher's scores, the losses, and one step of each training stage."""

from arkfast.distill.losses import CTCHead, LossSum
from arkfast.distill.step import idle_step, metric_names, opd_step, sft_step, td_step

__all__ = ["CTCHead", "LossSum", "idle_step", "metric_names", "opd_step", "sft_step", "td_step"]
