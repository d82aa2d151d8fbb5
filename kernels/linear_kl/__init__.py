"""Divergences over the whole vocabulary from two models' hidden states, and a sampled token's log-probability and entropy."""

from arkfast.kernels.linear_kl.logprob import linear_logprob
from arkfast.kernels.linear_kl.op import linear_kl

__all__ = ["linear_kl", "linear_logprob"]
