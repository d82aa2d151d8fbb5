"""Distillation: the teacher's scores, the losses, and one step of each training stage."""

from arkfast.distill.guards import Guards
from arkfast.distill.losses import CTCHead, LossSum
from arkfast.distill.objective import Objective
from arkfast.distill.step import idle_step, metric_names, opd_step, sft_step, td_step
from arkfast.distill.weights import Weights

__all__ = ["CTCHead", "Guards", "LossSum", "Objective", "Weights", "idle_step", "metric_names", "opd_step", "sft_step", "td_step"]
