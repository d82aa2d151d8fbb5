"""Checks on what a caller hands to an op: kinds, shapes, dtypes, devices, choices.

Everything here looks at metadata alone, never at values, so no check waits for a device.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from numbers import Real

import torch
from torch.autograd.forward_ad import unpack_dual


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
        check_tensor(op, name, tensor, letters)
        axes, known = letters.split(), dict(sizes)
        sizes.update((axis, int(axis)) for axis in axes if axis.isdigit())
        if tensor.dim() != len(axes) or any(sizes.setdefault(axis, n) != n for axis, n in zip(axes, tensor.shape, strict=True)):
            # Written where it is wrong alone: to torch.compile a size that is written out is no symbol any more.
            expected = ", ".join(f"{axis}={known[axis]}" if axis in known and not axis.isdigit() else axis for axis in axes)
            raise ValueError(f"{op}: {name} must have shape [{expected}], got {list(tensor.shape)}")
        if first is None:
            first = (name, tensor)
        elif tensor.device != first[1].device:
            raise ValueError(f"{op}: {name} must be on {first[1].device} as {first[0]} is, got {tensor.device}; move one of them")
    return sizes


def check_tensor(op: str, name: str, value: object, shape: str) -> None:
    """Raises ValueError unless ``value`` is a tensor that ops can read, without a tangent; its shape is not looked at.

    Args:
        op: the public function's name.
        name: the argument's.
        value: what came.
        shape: what the message calls its shape.
    """
    if isinstance(value, torch.nn.Module):
        advice = "give its .weight"
        if getattr(value, "bias", None) is not None:
            advice = (
                "and it has a bias, which no op adds: give torch.cat([weight, bias[:, None]], 1) and hidden states with a last feature of 1"
            )
        raise ValueError(f"{op}: {name} must be a torch.Tensor of shape [{shape}], got the module {type(value).__name__}; {advice}")
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{op}: {name} must be a torch.Tensor of shape [{shape}], got {type(value).__name__}")
    distributed = sys.modules.get("torch.distributed.tensor")  # importing it takes a second; unless somebody has, there is no DTensor
    if distributed is not None and isinstance(value, distributed.DTensor):
        raise ValueError(
            f"{op}: {name} is a DTensor, of which a process holds a part; call the op where it is whole, which is inside the forward of "
            "the module that FSDP2 shards, or give it as .full_tensor()"
        )
    if value.layout is not torch.strided:
        raise ValueError(f"{op}: {name} must be a dense tensor, got the layout {value.layout}; give it as .to_dense()")
    if not torch.compiler.is_compiling() and unpack_dual(value).tangent is not None:
        raise ValueError(f"{op}: {name} carries a tangent of forward-mode differentiation, which the op would lose; use backward-mode")


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
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_count(op: str, name: str, value: int) -> None:
    """Raises ValueError unless ``value`` is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{op}: {name} must be a whole number of at least 1, got {value!r}")


def check_temperature(op: str, tau: float) -> None:
    """Raises ValueError unless 0 < tau < ∞."""
    if not is_number(tau) or not 0.0 < tau < math.inf:
        raise ValueError(f"{op}: tau must be a finite temperature above 0, got {tau!r}")


def check_positive(op: str, name: str, value: float) -> None:
    """Raises ValueError unless 0 < ``value`` < ∞."""
    if not is_number(value) or not 0.0 < value < math.inf:
        raise ValueError(f"{op}: {name} must be a finite number above 0, got {value!r}")


def check_beta(op: str, divergence: str, beta: float) -> None:
    """Raises ValueError unless ``beta`` is a number, and between 0 and 1 where the divergence uses it."""
    if not is_number(beta) or (divergence == "jsd" and not 0.0 < beta < 1.0):
        raise ValueError(f"{op}: beta must lie between 0 and 1 for divergence='jsd', got {beta!r}; its ends are forward_kl and reverse_kl")


def check_flag(op: str, **flags: bool) -> None:
    """Raises ValueError for a flag that is neither True nor False: any text, "no" too, would count as True."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{op}: {name} must be True or False, got {value!r}")


def is_number(value: object) -> bool:
    """Whether ``value`` is a number that the host knows: no text, no bool, and no tensor, at which the host would wait for the device."""
    return isinstance(value, (Real, torch.SymFloat, torch.SymInt)) and not isinstance(value, bool)
