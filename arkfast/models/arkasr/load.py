"""Loading a checkpoint so that nothing is silently missing.

Knows the files of a checkpoint folder and compares their tensors with the model's before any weight is read; Transformers itself would
re-initialise what is missing and only warn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from arkfast.models.arkasr.config import ArkasrConfig
from arkfast.models.arkasr.modeling import ArkasrForConditionalGeneration
from arkfast.records import InputError

LISTED = 10  # tensors of each kind that an error message names
TIED = ("lm_head.weight", "model.embed_tokens.weight")

Shapes = dict[str, tuple[int, ...]]


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
    config = load_config(path)
    check_tensors(path, config)
    model = ArkasrForConditionalGeneration.from_pretrained(
        path, config=config, dtype=dtype, attn_implementation=attn_implementation, use_safetensors=True, local_files_only=True
    )
    return model.to(device).eval() if device is not None else model.eval()


def load_config(path: str | Path) -> ArkasrConfig:
    """The configuration of a checkpoint folder.

    Raises:
        InputError: the folder or its ``config.json`` is missing or unreadable, or belongs to another kind of model.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such checkpoint folder; give the local folder that holds config.json and model.safetensors")
    file = path / "config.json"
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no config.json; this is not a checkpoint folder") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as JSON ({error}); copy the checkpoint again") from error
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    if kind != ArkasrConfig.model_type:
        raise InputError(f"{file}: model_type is {kind!r}, expected {ArkasrConfig.model_type!r}; give an ARK-ASR checkpoint")
    try:
        return ArkasrConfig.from_pretrained(path, local_files_only=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"{file}: {error}") from error


def check_tensors(path: Path, config: ArkasrConfig) -> None:
    """Compare names and shapes of the stored tensors with the model's, from the files' headers alone.

    Raises:
        InputError: they differ, or a file is missing or damaged.
    """
    stored = _stored_shapes(path)
    expected = expected_shapes(config)
    ignored = [re.compile(pattern) for pattern in ArkasrForConditionalGeneration._keys_to_ignore_on_load_unexpected]
    missing = {name: shape for name, shape in expected.items() if name not in stored}
    if config.tie_word_embeddings and not all(name in missing for name in TIED):
        missing = {name: shape for name, shape in missing.items() if name not in TIED}
    unexpected = {name: shape for name, shape in stored.items() if name not in expected and not any(p.search(name) for p in ignored)}
    wrong = {name: (stored[name], shape) for name, shape in expected.items() if stored.get(name, shape) != shape}
    if not (missing or unexpected or wrong):
        return
    lines = [f"{path}: the weights do not fit config.json; use the checkpoint's own config.json, or a checkpoint of this model"]
    lines += _listing("missing", {name: f"expected {list(shape)}" for name, shape in missing.items()})
    lines += _listing("unexpected", {name: f"{list(shape)}" for name, shape in unexpected.items()})
    lines += _listing("wrong shape", {name: f"{list(found)}, expected {list(shape)}" for name, (found, shape) in wrong.items()})
    raise InputError("\n".join(lines))


def expected_shapes(config: ArkasrConfig) -> Shapes:
    """Names and shapes of the state dict that ``config`` describes, without allocating it."""
    with torch.device("meta"):
        model = ArkasrForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _stored_shapes(path: Path) -> Shapes:
    shapes: Shapes = {}
    for file in _weight_files(path):
        try:
            with safe_open(file, framework="pt") as tensors:
                shapes.update({name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()})  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file}: not a complete safetensors file ({error}); copy the checkpoint again") from error
    return shapes


def _weight_files(path: Path) -> list[Path]:
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index}: cannot be read as a shard index ({error!r}); copy the checkpoint again") from error
        absent = [name for name in names if not (path / name).is_file()]
        if absent:
            raise InputError(f"{path}: shards named by {index.name} are missing: {', '.join(absent[:LISTED])}; copy the checkpoint again")
        return [path / name for name in names]
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
    if pickled:
        raise InputError(
            f"{path}: holds {pickled[0]} but no safetensors weights; loading a pickle can run code. Save it as safetensors "
            "(model.save_pretrained in the environment that made it) and give that folder"
        )
    raise InputError(f"{path}: no model.safetensors (nor shards with an index); copy the checkpoint again")


def _listing(kind: str, tensors: Mapping[str, Any]) -> list[str]:
    lines = [f"  {kind}: {name} {note}" for name, note in list(tensors.items())[:LISTED]]
    return lines + ([f"  {kind}: and {len(tensors) - LISTED} more"] if len(tensors) > LISTED else [])
