"""The weight files of a checkpoint folder, compared with a model before any weight is read.

Transformers itself would re-initialise what is missing and only warn. Files are safetensors; no pickle is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from arkfast.records import InputError

LISTED = 10  # tensors of each kind that an error message names

Shapes = dict[str, tuple[int, ...]]


def tied_names(model: nn.Module) -> frozenset[str]:
    """Names of the parameters of a Transformers model that are one tensor, of which a checkpoint holds at least one."""
    pairs = getattr(model, "_tied_weights_keys", None) or {}
    return frozenset((*pairs, *pairs.values())) if getattr(model.config, "tie_word_embeddings", False) else frozenset()


def check_tensors(path: Path, shell: nn.Module, *, ignored: Iterable[str] = (), renamed: Callable[[str], str] | None = None) -> None:
    """Compare names and shapes of the stored tensors with a model's, from the files' headers alone.

    Args:
        path: the checkpoint folder.
        shell: a Transformers model, which may be without weights.
        ignored: patterns of names that a checkpoint may hold besides.
        renamed: a stored name → the model's, where the checkpoint is of another layout.

    Raises:
        InputError: they differ (the first of each kind are listed with their shapes), or a file is missing or damaged.
    """
    stored = stored_shapes(path)
    if renamed is not None:
        stored = {renamed(name): shape for name, shape in stored.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in shell.state_dict().items()}
    tied, patterns = tied_names(shell), [re.compile(pattern) for pattern in ignored]
    missing = {name: shape for name, shape in expected.items() if name not in stored}
    if any(name in stored for name in tied):
        missing = {name: shape for name, shape in missing.items() if name not in tied}
    unexpected = {name: shape for name, shape in stored.items() if name not in expected and not any(p.search(name) for p in patterns)}
    wrong = {name: (stored[name], shape) for name, shape in expected.items() if stored.get(name, shape) != shape}
    if not (missing or unexpected or wrong):
        return
    lines = [f"{path}: the weights do not fit config.json; use the checkpoint's own config.json, or a checkpoint of this model"]
    lines += _listing("missing", {name: f"expected {list(shape)}" for name, shape in missing.items()})
    lines += _listing("unexpected", {name: f"{list(shape)}" for name, shape in unexpected.items()})
    lines += _listing("wrong shape", {name: f"{list(found)}, expected {list(shape)}" for name, (found, shape) in wrong.items()})
    raise InputError("\n".join(lines))


def stored_shapes(path: Path) -> Shapes:
    """Names and shapes of a checkpoint folder's tensors, from the files' headers alone.

    Raises:
        InputError: a file is missing or damaged.
    """
    shapes: Shapes = {}
    for file in weight_files(path):
        try:
            with safe_open(file, framework="pt") as tensors:
                shapes.update({name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()})  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file}: not a complete safetensors file ({error}); copy the checkpoint again") from error
    return shapes


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder.

    Raises:
        InputError: there are none, or one that the index names is missing.
    """
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


def _listing(kind: str, tensors: Mapping[str, object]) -> list[str]:
    lines = [f"  {kind}: {name} {note}" for name, note in list(tensors.items())[:LISTED]]
    return lines + ([f"  {kind}: and {len(tensors) - LISTED} more"] if len(tensors) > LISTED else [])
