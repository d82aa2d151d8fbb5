"""A checkpoint's weights put straight into a model that has none yet, one part at a time.

A model is never whole in main memory: what a part needs is read when that part is about to be sharded.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from arkfast.models.family import AnyFamily
from arkfast.models.weights import tied_names, weight_files


class StoredModel:
    """A model without weights, and the files that hold them.

    Args:
        family: of the model.
        folder: a checkpoint.
        attn_implementation: the decoder's attention.

    Raises:
        InputError: the folder, its configuration or its weights cannot be read or do not fit each other.
    """

    def __init__(self, family: AnyFamily, folder: Path, attn_implementation: str) -> None:
        self._family = family
        self.model = family.shell(folder, attn_implementation=attn_implementation)
        self._files: dict[str, Path] = {}
        for file in weight_files(folder):
            with safe_open(file, framework="pt") as tensors:
                self._files |= dict.fromkeys(tensors.keys(), file)
        self._tied = tied_names(self.model)
        self._names = {parameter: name for name, parameter in self.model.named_parameters()}
        self.dtype: torch.dtype = self.model.config.dtype or self.read(self._names[self.model.model.norm.weight]).dtype
        """The checkpoint's precision."""

    def read(self, name: str) -> torch.Tensor:
        """A parameter as it is stored. Tied parameters may be asked for by either name."""
        stored = name if name in self._files or name not in self._tied else next(other for other in self._tied if other in self._files)
        with safe_open(self._files[stored], framework="pt") as tensors:
            value: torch.Tensor = tensors.get_tensor(stored)
            return value

    def fill(self, module: nn.Module, device: torch.device, compute_dtype: torch.dtype) -> None:
        """Give a part of the model its weights on the device: float32 what is trained, in the compute precision what is frozen."""
        made: dict[nn.Parameter, nn.Parameter] = {}
        for owner in module.modules():
            for key, parameter in owner._parameters.items():
                if parameter is not None and parameter.is_meta:
                    if parameter not in made:
                        dtype = torch.float32 if parameter.requires_grad else compute_dtype
                        value = self.read(self._names[parameter]).to(self.dtype).to(device, dtype)
                        made[parameter] = nn.Parameter(value, requires_grad=parameter.requires_grad)
                    owner._parameters[key] = made[parameter]

    def fill_buffers(self, device: torch.device) -> None:
        """Compute the buffers, which no checkpoint stores."""
        self._family.fill_buffers(self.model, device)
        absent = [name for name, buffer in self.model.named_buffers() if buffer.is_meta]
        assert not absent, f"buffers that nothing fills: {absent}"
