"""What a user may pass as a waveform, and where features are written."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from arkfast.audio.reference import SAMPLING_RATE
from arkfast.records import InputError

if TYPE_CHECKING:
    import torch

_INT16_SCALE = np.float32(1 / 32768)  # a power of two: exact


def as_array(item: object) -> NDArray[Any]:
    """What NumPy makes of an array, a tensor or a list of numbers.

    A tensor may be on any device, need a gradient, or be of a type that NumPy lacks, such as bfloat16, which becomes float32.
    """
    if _is_tensor(item):
        item = item.detach().cpu()
        item = item.float() if item.is_floating_point() and item.element_size() < 4 else item
    return np.asarray(item)


def as_samples(label: str, item: object) -> NDArray[np.float32]:
    """One waveform as contiguous float32, checked but for its values.

    Args:
        label: what messages call it.
        item: [n] samples: float32 (not copied when contiguous and aligned), float16, float64 (rounded) or int16 (divided by 32768); a NumPy
            array, a tensor (of bfloat16 too, on any device, with or without a gradient) or a list of floats.

    Raises:
        InputError: it is not one-dimensional.
        TypeError: its samples have another type.
    """
    array = as_array(item)
    if array.ndim != 1:
        raise InputError(
            f"{label}: expected one dimension, got shape {list(array.shape)}: mix channels down to mono, pass a batch as a list"
        )
    if array.dtype == np.float32:
        return array if array.flags.c_contiguous and array.flags.aligned else np.require(array, requirements=["C", "A"])
    if array.dtype == np.int16:
        return array.astype(np.float32) * _INT16_SCALE
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # a value past float32 becomes infinite, and is reported as such
            return array.astype(np.float32)
    raise TypeError(f"{label}: samples must be floats or int16, got {array.dtype}: convert and scale them to -1..1")


def nonfinite(label: str, sample: int, value: np.float32) -> InputError:
    """The error about a NaN or an infinity."""
    return InputError(f"{label}: sample {sample} ({sample / SAMPLING_RATE:.3f} s) is {value}: only finite samples")


def too_long(label: str, count: int, max_samples: int, advice: str) -> InputError:
    """The error about a clip over the limit."""
    return InputError(f"{label} has {count} samples ({count / SAMPLING_RATE:.2f} s), over the limit of {max_samples}: {advice}")


def new_features(shape: tuple[int, ...], dtype: str) -> tuple[NDArray[np.float32] | torch.Tensor, NDArray[np.float32] | NDArray[np.uint16]]:
    """Uninitialised features, a NumPy array or for "bfloat16", which NumPy lacks, a CPU tensor; and their memory, as ``memory_of``."""
    if dtype == "float32":
        array = np.empty(shape, dtype=np.float32)
        return array, array
    import torch

    tensor = torch.empty(shape, dtype=torch.bfloat16)
    return tensor, memory_of(tensor, dtype)


def memory_of(features: NDArray[np.float32] | torch.Tensor, dtype: str) -> NDArray[np.float32] | NDArray[np.uint16]:
    """The memory of ``out`` as a writable array: float32, or the bits of bfloat16.

    Raises:
        ValueError: it is not a C-contiguous array or CPU tensor of this dtype.
    """
    if _is_tensor(features):
        import torch

        if features.device.type != "cpu" or features.dtype != getattr(torch, dtype) or not features.is_contiguous():
            raise ValueError(f"LogMel: out must be a contiguous {dtype} tensor on the CPU, got {features.dtype} on {features.device}")
        features = features.detach()
        return features.numpy() if dtype == "float32" else features.view(torch.int16).numpy().view(np.uint16)
    if dtype != "float32":
        raise ValueError(f"LogMel: out must be a {dtype} CPU tensor, got {type(features).__name__}: NumPy has no such type")
    if not isinstance(features, np.ndarray) or features.dtype != np.float32 or not features.flags.carray:
        raise ValueError("LogMel: out must be a writable C-contiguous float32 array or CPU tensor")
    return features


def _is_tensor(features: object) -> TypeGuard[torch.Tensor]:
    torch = sys.modules.get("torch")  # a tensor can only come from a process that has loaded torch
    return torch is not None and isinstance(features, torch.Tensor)
