"""Log-probabilities of a few ids under the softmax of logit rows, or of a linear layer without keeping its [T, V] product."""

from arkfast.kernels.log_softmax.linear import linear_log_softmax
from arkfast.kernels.log_softmax.op import row_log_softmax

__all__ = ["linear_log_softmax", "row_log_softmax"]
