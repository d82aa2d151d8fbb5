"""Checks on what a caller hands to an op: kinds, shapes, dtypes, devices, choices.

Knows how to word an error; knows no op. Everything here looks at metadata alone, never at values, so no check waits for a device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def check_shapes(op: str, **arguments: tuple[torch.Tensor | None, str]) -> dict[str, int]:
    """Checks tensors against shape letters and returns the size of each letter.

    Args:
        op: the public function's name, which opens every message.
        arguments: name → (tensor, letters). Letters are separated by spaces, as in "T H"; a letter that occurs twice must have one size; a
            number stands for itself. A tensor that is None is skipped. All tensors must be on the device of the first.

    Returns:
        letter → size.

    Raises:
        ValueError: names the argument, what was expected and what came.
    """
    sizes: dict[str, int] = {}
    first: tuple[str, torch.Tensor] | None = None
    for name, (tensor, letters) in arguments.items():
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{op}: {name} must be a torch.Tensor of shape [{letters}], got {type(tensor).__name__}")
        axes = letters.split()
        expected = ", ".join(f"{axis}={sizes[axis]}" if axis in sizes and not axis.isdigit() else axis for axis in axes)
        sizes.update((axis, int(axis)) for axis in axes if axis.isdigit())
        if tensor.dim() != len(axes) or any(sizes.setdefault(axis, n) != n for axis, n in zip(axes, tensor.shape, strict=True)):
            raise ValueError(f"{op}: {name} must have shape [{expected}], got {list(tensor.shape)}")
        if first is None:
            first = (name, tensor)
        elif tensor.device != first[1].device:
            raise ValueError(f"{op}: {name} must be on {first[1].device} as {first[0]} is, got {tensor.device}; move one of them")
    return sizes


def check_floating(op: str, **tensors: torch.Tensor | None) -> None:
    """Raises ValueError for a tensor that is not bf16, fp16, fp32 or fp64; None is skipped."""
    allowed = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in allowed:
            raise ValueError(f"{op}: {name} must be bfloat16, float16, float32 or float64, got {tensor.dtype}")


def check_same_dtype(op: str, **tensors: torch.Tensor | None) -> None:
    """Raises ValueError for a tensor whose dtype is not the first one's; None is skipped."""
    given = [(name, tensor) for name, tensor in tensors.items() if tensor is not None]
    first, lead = given[0]
    for name, tensor in given[1:]:
        if tensor.dtype != lead.dtype:
            raise ValueError(f"{op}: {name} must be {lead.dtype} as {first} is, got {tensor.dtype}; convert one of them")


def check_no_gradient(op: str, **tensors: torch.Tensor | None) -> None:
    """Raises ValueError where autograd would record the call: an op for inference alone would leave its inputs without a gradient."""
    if not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad:
            raise ValueError(f"{op}: {name} requires a gradient, which this op does not give; call it under torch.no_grad()")


def check_ids(op: str, **tensors: torch.Tensor | None) -> None:
    """Raises ValueError for a tensor of ids that is neither int32 nor int64; None is skipped."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{op}: {name} must hold ids as int32 or int64, got {tensor.dtype}; convert it with .to(torch.int32)")


def check_choice(op: str, name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_count(op: str, name: str, value: int) -> None:
    """Raises ValueError unless ``value`` is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{op}: {name} must be a whole number of at least 1, got {value!r}")


def check_temperature(op: str, tau: float) -> None:
    """Raises ValueError unless 0 < tau < ∞."""
    if not 0.0 < tau < float("inf"):
        raise ValueError(f"{op}: tau must be a finite temperature above 0, got {tau!r}")
