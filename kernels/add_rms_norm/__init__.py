"""Residual addition and root-mean-square normalisation of a decoder's rows, for inference."""

from arkfast.kernels.add_rms_norm.op import add_rms_norm

__all__ = ["add_rms_norm"]
