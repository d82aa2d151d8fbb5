"""A linear layer evaluated at a few output ids per position, so that no [T, V] product exists."""

from arkfast.kernels.gather_linear.op import gather_linear

__all__ = ["gather_linear"]
