"""Parts of an encoder's layer under ``torch.compile``: elementwise work between matrix products becomes a few kernels.

A part is compiled once for all layers and lengths, when it is first called; weights stay in their modules under their own names. Where it
cannot be compiled it runs as it is, and one warning says why.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from arkfast.kernels.common.launch import device_refusal
from arkfast.records import InputError

COMPILE = "ARKFAST_COMPILE_ENCODER"
"""The variable that switches compilation: 0 never, 1 on every device; by default on a GPU where kernels can be built."""
BACKEND = "inductor"
"""Of ``torch.compile``."""

P = ParamSpec("P")
R = TypeVar("R")

_refused: list[str] = []
"""Why nothing is compiled in this process any more."""


def wanted(device: torch.device, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether parts of layers on ``device`` are compiled.

    Raises:
        InputError: the variable ``ARKFAST_COMPILE_ENCODER`` says something else than 0 or 1.
    """
    asked = environment.get(COMPILE)
    if asked not in (None, "0", "1"):
        raise InputError(f"{COMPILE}={asked}: must be 0 or 1")
    # A caller that compiles or exports the whole model takes these parts as they are.
    if asked == "0" or _refused or torch.compiler.is_compiling():
        return False
    return asked == "1" or (device.type == "cuda" and device_refusal(device) is None)


@functools.cache
def _compiled(part: Callable[P, R], backend: str) -> Callable[P, R]:
    return torch.compile(part, backend=backend)


def call(part: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """``part(*arguments, **named)``, compiled where ``wanted`` says so of the first tensor's device.

    Args:
        part: a function of a module, whose arguments are that module and tensors. A tensor's axes but the last are lengths, which may
            differ from call to call.
    """
    device = next(x.device for x in arguments if isinstance(x, Tensor))
    if not wanted(device):
        return part(*arguments, **named)
    import torch._dynamo as dynamo
    from torch._dynamo.exc import TorchDynamoException

    for x in arguments:
        if isinstance(x, Tensor):
            for axis in range(x.dim() - 1):
                # Said of the axes that are lengths: dynamic=True would make a symbol of every number of a module, a norm's eps too.
                dynamo.maybe_mark_dynamic(x, axis)
    try:
        return _compiled(part, BACKEND)(*arguments, **named)
    except TorchDynamoException as error:
        said = " ".join(str(error).strip().splitlines()[:2])
        _refused.append(said)
        warnings.warn(
            f"arkfast: the audio encoder could not be compiled and runs slower ({type(error).__name__}: {said}); set {COMPILE}=0 to leave "
            "it out",
            RuntimeWarning,
            stacklevel=2,
        )
        return part(*arguments, **named)
