"""A checkpoint's weights put straight into a model that has none yet, one part at a time.

Knows safetensors files and modules on the meta device; knows no shard. A model is never whole in main memory: what a part needs is read
when that part is about to be sharded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import GenerationConfig

from arkfast.models.arkasr.load import TIED, check_tensors, load_config
from arkfast.models.arkasr.modeling import ArkasrForConditionalGeneration


class StoredModel:
    """A model without weights, and the files that hold them.

    Args:
        folder: a checkpoint.
        attn_implementation: the decoder's attention.

    Raises:
        InputError: the folder, its configuration or its weights cannot be read or do not fit each other.
    """

    def __init__(self, folder: Path, attn_implementation: str) -> None:
        config = load_config(folder)
        check_tensors(folder, config)
        with torch.device("meta"):
            self.model: Any = ArkasrForConditionalGeneration._from_config(config, attn_implementation=attn_implementation).eval()
        if (folder / "generation_config.json").is_file():
            self.model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        self._files: dict[str, Path] = {}
        single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
        names = [single.name] if single.is_file() else sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        for file in (folder / name for name in names):
            with safe_open(file, framework="pt") as tensors:
                self._files |= dict.fromkeys(tensors.keys(), file)
        self.dtype = config.dtype or self.read("model.norm.weight").dtype
        """The checkpoint's precision."""
        self._names = {parameter: name for name, parameter in self.model.named_parameters()}

    def read(self, name: str) -> torch.Tensor:
        """A parameter as it is stored; of the tied pair either name will do."""
        stored = name if name in self._files or name not in TIED else next(other for other in TIED if other in self._files)
        with safe_open(self._files[stored], framework="pt") as tensors:
            return tensors.get_tensor(stored)

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
        """Compute the decoder's rotary table, which no checkpoint stores."""
        decoder = self.model.model
        decoder.rotary_emb = type(decoder.rotary_emb)(self.model.config).to(device)
        absent = [name for name, buffer in self.model.named_buffers() if buffer.is_meta]
        assert not absent, f"buffers that nothing fills: {absent}"
