"""Log-probabilities of a few ids under a linear layer's softmax, with gradient, without keeping the [T, V] product."""

from arkfast.kernels.log_softmax.op import linear_log_softmax

__all__ = ["linear_log_softmax"]
