"""The device that a process works on: chosen once, where a command or a session begins.

Streams, events and kernels that name no device belong to the current one, so that the chosen GPU is made that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING

from arkfast.records import InputError

if TYPE_CHECKING:
    import torch

CUDNN = "ARKFAST_CUDNN_ATTENTION"
"""The variable that lets PyTorch take cuDNN's attention."""
WORKSPACE, WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
"""The variable that cuBLAS reads when it starts, and the values with which its products add up in a fixed order."""


def use_device(name: str | torch.device | None, *, flag: str = "--device", environment: Mapping[str, str] = os.environ) -> torch.device:
    """The device of that name, as this process's own.

    On a GPU the current device becomes that one, and cuDNN's attention is switched off, which PyTorch prefers on recent GPUs: it builds a
    plan for each new shape, and batches of speech are of a new shape each. Set the variable ``ARKFAST_CUDNN_ATTENTION`` to 1 to have it
    back.

    Args:
        name: cpu, cuda or cuda:N; None or auto: a GPU where there is one.
        flag: what an error calls the choice.
        environment: where the variable is looked for.

    Raises:
        InputError: no such device, a GPU that is not there, or a kind of device on which arkfast does not run.
    """
    import torch

    if name is None or str(name) == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"{flag} {name}: not a device that torch knows ({str(error).splitlines()[0]}); give cpu, cuda or auto") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"{flag} {name}: arkfast runs on cpu and cuda; give one of them, or auto for what there is")
    if device.type == "cpu":
        return device
    if (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(f"{flag} {name}: torch sees {count} GPU{'s' * (count != 1)} here; give another, cpu, or auto for what there is")
    device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    torch.cuda.set_device(device)
    choose_attention(environment)
    return device


def choose_attention(environment: Mapping[str, str] = os.environ) -> bool:
    """Switch cuDNN's attention off for the whole process, or on where ``ARKFAST_CUDNN_ATTENTION`` is 1; whether it is on.

    Raises:
        InputError: the variable says something else.
    """
    import torch

    asked = environment.get(CUDNN, "0")
    if asked not in ("0", "1"):
        raise InputError(f"{CUDNN}={asked}: must be 0 or 1")
    torch.backends.cuda.enable_cudnn_sdp(asked == "1")
    return asked == "1"


def be_deterministic(environment: MutableMapping[str, str] = os.environ, *, flag: str = "--deterministic") -> None:
    """Have this process compute the same bits from the same input, on the same machine and software, until it ends.

    PyTorch then takes its deterministic algorithms: attention's backward pass adds up in a fixed order, and an operation that has no such
    form raises PyTorch's error, which names it. cuBLAS gets a workspace of its own for each stream, for which this must be called before
    the first product on a GPU.

    Args:
        environment: where ``CUBLAS_WORKSPACE_CONFIG`` is looked for and set.
        flag: what an error calls the choice.

    Raises:
        InputError: the environment asks for something else, or it is too late to ask cuBLAS.
    """
    import torch

    asked = environment.get(WORKSPACE)
    if asked is not None and asked not in WORKSPACES:
        raise InputError(f"{flag}: {WORKSPACE}={asked} lets products add up in any order; unset it, or set it to {' or '.join(WORKSPACES)}")
    if environment.get(CUDNN, "0") == "1":
        raise InputError(
            f"{flag}: {CUDNN}=1 asks for cuDNN's attention, whose backward pass adds up in no fixed order; leave one of them out"
        )
    if asked is None and torch.cuda.is_initialized():
        raise InputError(f"{flag}: a GPU is in use by this process already; set {WORKSPACE}={WORKSPACES[0]} before it starts")
    environment[WORKSPACE] = asked or WORKSPACES[0]
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
