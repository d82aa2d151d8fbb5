"""Transformers checkpoints from the weights that are trained: during a run, and from its checkpoints afterwards."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard

from arkfast.models.family import Processor, SpeechModel


@torch.no_grad()
def whole_weights(
    trained: Mapping[str, torch.Tensor], frozen: Mapping[str, torch.Tensor], dtype: torch.dtype, *, keep: bool = True
) -> dict[str, torch.Tensor]:
    """The model's weights on the CPU, by name.

    Args:
        trained: float32 weights; DTensors are gathered one by one, so every rank must call.
        frozen: those that do not train.
        dtype: what they become.
        keep: False on ranks that only take part in gathering; they get nothing.
    """
    weights = {}
    for name, value in trained.items():
        whole = _whole(value) if isinstance(value, DTensor) else value
        if keep:
            weights[name] = whole.to("cpu", dtype, copy=True)
    return weights | {name: value.to("cpu", dtype) for name, value in frozen.items()} if keep else {}


# Newer versions of torch have another name for it, and warn of the old one in every process.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def _whole(tensor: DTensor) -> torch.Tensor:
    """A tensor that FSDP2 shards by rows over the mesh's last dimension, as ``torch.chunk`` cuts them.

    Not ``full_tensor``: its functional collective was seen to corrupt the heap now and then on gloo, while it waits.
    """
    mesh, local = tensor.device_mesh, tensor.to_local()
    assert tensor.placements[-1] == Shard(0), f"expected rows to be sharded, got {tensor.placements}"
    ranks = mesh.size(mesh.ndim - 1)
    own = local.new_zeros(-(-tensor.shape[0] // ranks), *tensor.shape[1:])
    own[: len(local)] = local
    whole = own.new_empty(ranks * len(own), *tensor.shape[1:])
    _all_gather(whole, own, group=mesh.get_group(mesh.ndim - 1))
    return whole[: tensor.shape[0]]


def write_model(folder: Path, model: SpeechModel, weights: Mapping[str, torch.Tensor], processor: Processor) -> None:
    """Write a Transformers checkpoint: ``weights`` in the precision they have, the configuration of ``model``, the processor's files.

    Raises:
        ValueError: a parameter of the model has no weight.
    """
    with torch.device("meta"):
        shell: SpeechModel = type(model)(copy.deepcopy(model.config))
    names = {name for name, _ in shell.named_parameters()}
    if absent := sorted(names - weights.keys()):
        raise ValueError(f"export to {folder}: no weight for {', '.join(absent[:5])} and {max(0, len(absent) - 5)} more")
    shell.load_state_dict({name: weights[name] for name in names}, strict=False, assign=True)
    shell.tie_weights()
    shell.generation_config = model.generation_config
    shell.save_pretrained(folder)
    processor.save_pretrained(folder)
