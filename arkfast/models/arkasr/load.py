"""Loading an ARK-ASR checkpoint so that nothing is silently missing."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from arkfast.models.arkasr.config import ArkasrConfig
from arkfast.models.arkasr.modeling import ArkasrForConditionalGeneration
from arkfast.models.family import read_config
from arkfast.models.weights import fitting_shell
from arkfast.records import InputError


def load_model(
    path: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    attn_implementation: str = "sdpa",
    device: str | torch.device | None = None,
) -> ArkasrForConditionalGeneration:
    """Load an ARK-ASR checkpoint folder, in eval mode, or say what is wrong with it.

    Args:
        path: a local folder with ``config.json`` and safetensors weights (one file, or shards with their index).
        dtype: of the weights; "auto" is the one that the checkpoint names.
        attn_implementation: the decoder's attention; the encoder uses SDPA unless this is "eager".
        device: where the model goes; None leaves it on the CPU.

    Raises:
        InputError: the folder, its configuration or its weights cannot be read, or tensors are missing, unexpected or wrongly shaped
            (the first of each are listed with their shapes).
    """
    path = Path(path)
    model = ArkasrForConditionalGeneration.from_pretrained(
        path,
        config=load_shell(path).config,
        dtype=dtype,
        attn_implementation=attn_implementation,
        use_safetensors=True,
        local_files_only=True,
    )
    if device is not None:
        PreTrainedModel.to(model, device)  # called on the class: its wrapper hides from a type checker that it is a method
    return model.eval()


def load_shell(path: Path, *, attn_implementation: str | None = None) -> ArkasrForConditionalGeneration:
    """The model of a checkpoint folder without weights, as ``empty_model`` makes it and as the files hold it; see ``fitting_shell``.

    Raises:
        InputError: as ``load_model`` does.
    """
    return fitting_shell(
        path,
        load_config(path),
        lambda config: empty_model(config, attn_implementation=attn_implementation),
        ignored=ArkasrForConditionalGeneration._keys_to_ignore_on_load_unexpected,
    )


def load_config(path: str | Path) -> ArkasrConfig:
    """The configuration of a checkpoint folder.

    Raises:
        InputError: the folder or its ``config.json`` is missing or unreadable, or belongs to another kind of model.
    """
    path = Path(path)
    kind, file = read_config(path).get("model_type"), path / "config.json"
    if kind != ArkasrConfig.model_type:
        raise InputError(f"{file}: model_type is {kind!r}, expected {ArkasrConfig.model_type!r}; give an ARK-ASR checkpoint")
    try:
        return ArkasrConfig.from_pretrained(path, local_files_only=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"{file}: {error}") from error


def empty_model(config: ArkasrConfig, *, attn_implementation: str | None = None) -> ArkasrForConditionalGeneration:
    """The model that ``config`` describes, without weights: on the meta device, in evaluation mode."""
    with torch.device("meta"):
        return ArkasrForConditionalGeneration._from_config(config, attn_implementation=attn_implementation).eval()
