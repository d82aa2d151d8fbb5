"""The gradient of a weight of which only some rows were used: a deterministic sum per row."""

from arkfast.kernels.sparse_grad.op import sparse_weight_grad

__all__ = ["sparse_weight_grad"]
