"""The gate of a decoder's feed-forward layers, silu(gate) · up, for inference."""

from arkfast.kernels.swiglu.op import swiglu

__all__ = ["swiglu"]
