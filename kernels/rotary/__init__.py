"""Rotary positions of queries and keys whose neighbouring features turn together, for training and inference."""

from arkfast.kernels.rotary.op import rotary

__all__ = ["rotary"]
