"""The weight files of a checkpoint folder, compared with a model before any weight is read.

Transformers itself would re-initialise what is missing and only warn. Files are safetensors; no pickle is read.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedConfig

from arkfast.files.json_input import parse_json_object
from arkfast.records import InputError

LISTED = 10  # tensors of each kind that an error message names

COMPARED = 1 << 22
"""Values of each of two stored tensors that are in memory at a time while they are compared."""

Shapes = dict[str, tuple[int, ...]]
C = TypeVar("C", bound=PreTrainedConfig)
M = TypeVar("M", bound=nn.Module)


def fitting_shell(
    path: Path,
    config: C,
    build: Callable[[C], M],
    *,
    ignored: Iterable[str] = (),
    renamed: Callable[[str], str] | None = None,
) -> M:
    """The model of a checkpoint folder without weights, after a comparison with the files.

    This is the one place that decides whether head and token table are one tensor. Where ``config`` says so and the files hold two that
    differ, the files are right, as they are for Transformers' own loader: ``config`` is changed to say that they are two, with a warning.
    Whoever loads, shards or writes the model goes by ``config`` afterwards, and so by the same reading.

    Args:
        path: the checkpoint folder.
        config: its configuration, whose ``tie_word_embeddings`` may be changed.
        build: makes the model of a configuration on the meta device.
        ignored, renamed: see ``check_tensors``.

    Raises:
        InputError: as ``check_tensors`` does.
    """
    shell = build(config)
    if apart := _stored_apart(path, shell, renamed):
        warnings.warn(
            f"{path}: config.json says that {' and '.join(apart)} are one tensor (tie_word_embeddings), and the files hold two that "
            "differ; the model is used with both, as it is stored. Set tie_word_embeddings to false in config.json to say so there too",
            RuntimeWarning,
            stacklevel=2,
        )
        untie(config)
        shell = build(config)
    check_tensors(path, shell, ignored=ignored, renamed=renamed)
    return shell


def untie(config: PreTrainedConfig) -> None:
    """Make a configuration say that head and token table are two tensors, its decoder's part too."""
    for part in (config, config.get_text_config()):
        part.update({"tie_word_embeddings": False})


def _stored_apart(path: Path, shell: nn.Module, renamed: Callable[[str], str] | None) -> tuple[str, ...]:
    """The model's names of a tied pair that the files hold as two tensors of different values; empty where all pairs are one."""
    tied = tied_names(shell)
    places: dict[str, tuple[Path, str]] = {}
    for file in weight_files(path) if tied else ():
        with _opened(file) as tensors:
            places |= {own: (file, name) for name in tensors.keys() if (own := renamed(name) if renamed else name) in tied}  # noqa: SIM118
    for target, source in _tied_pairs(shell).items():
        if target in places and source in places and _differ(places[target], places[source]):
            return source, target
    return ()


def _differ(one: tuple[Path, str], other: tuple[Path, str]) -> bool:
    """Whether two stored tensors, each a file and its name there, have other values; a few rows of each are read at a time."""
    with _opened(one[0]) as first, _opened(other[0]) as second:
        a, b = first.get_slice(one[1]), second.get_slice(other[1])
        shape = a.get_shape()
        if shape != b.get_shape():
            return False  # one of them does not fit the model, which is told with its shape
        rows = max(1, COMPARED // max(1, shape[1]))
        return any(bool((a[i : i + rows].float() != b[i : i + rows].float()).any()) for i in range(0, shape[0], rows))


def _opened(file: Path) -> safe_open:
    """A safetensors file as it is read, whose errors name it."""
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: not a complete safetensors file ({error}); copy the checkpoint again") from error


def _tied_pairs(model: nn.Module) -> Mapping[str, str]:
    """target → source of the parameters that Transformers makes one."""
    pairs: Mapping[str, str] = getattr(model, "_tied_weights_keys", None) or {}
    return pairs if getattr(model.config, "tie_word_embeddings", False) else {}


def tied_names(model: nn.Module) -> frozenset[str]:
    """Names of the parameters of a Transformers model that are one tensor, of which a checkpoint holds at least one."""
    pairs = _tied_pairs(model)
    return frozenset((*pairs, *pairs.values()))


def check_tensors(path: Path, shell: nn.Module, *, ignored: Iterable[str] = (), renamed: Callable[[str], str] | None = None) -> None:
    """Compare names and shapes of the stored tensors with a model's, from the files' headers alone.

    Args:
        path: the checkpoint folder.
        shell: a Transformers model, which may be without weights.
        ignored: patterns of further names that a checkpoint may hold.
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
        with _opened(file) as tensors:
            shapes.update({name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()})  # noqa: SIM118
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
            names = sorted(set(parse_json_object(index.read_bytes())["weight_map"].values()))
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
