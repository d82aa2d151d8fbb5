"""``arkfast export``: a Transformers model out of a checkpoint, in the precision that is asked for.

Knows a checkpoint's master weights and running average; a checkpoint's own model files are the weights in the precision of the model that
training began from.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from arkfast.config import parse
from arkfast.records import InputError

DESCRIPTION = "Write the model of a training checkpoint as a Transformers folder."


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Which weights of which checkpoint, and where they go."""

    checkpoint: Path
    """A folder checkpoints/global_step_N of a run, or the run's folder, which means its newest checkpoint that is whole."""
    output: Path
    """Folder of the model; it is made, and must not hold anything yet."""
    weights: Literal["master", "ema"] = "master"
    """master: the weights as trained; ema: their running average, of a run with --ema_decay."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the files; auto is that of the model that training began from."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    config = parse(ExportConfig, argv, prog="arkfast export", description=DESCRIPTION)
    from transformers.utils import logging

    logging.disable_progress_bar()
    step = export(config)
    print(f"{config.output}: {config.weights} weights of {step}", file=sys.stderr)
    return 0


def export(config: ExportConfig) -> Path:
    """Write the model; returns the checkpoint that it came from.

    Raises:
        InputError: no such checkpoint, a damaged one, one without the weights that are asked for, or an output that exists.
    """
    from arkfast.models import ArkasrProcessor, load_model
    from arkfast.train.checkpoint import find_checkpoint, replace_folder
    from arkfast.train.export import write_model

    if config.output.exists() and (not config.output.is_dir() or any(config.output.iterdir())):
        raise InputError(f"--output {config.output}: exists and is not empty; give a new folder")
    folder = find_checkpoint(config.checkpoint, note=lambda text: print(text, file=sys.stderr))
    model = load_model(folder, dtype="auto")
    dtype = model.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    trained = _read(folder, model, config.weights)
    weights = {name: trained.get(name, parameter).to(dtype) for name, parameter in model.state_dict().items()}
    replace_folder(config.output, lambda new: write_model(new, model, weights, ArkasrProcessor.from_pretrained(folder)))
    return folder


def _read(folder: Path, model: torch.nn.Module, kind: str) -> dict[str, torch.Tensor]:
    """The trained weights by name, float32; what was frozen, and what adapters went into, stands in the model alone."""
    from arkfast.train.state import read_state

    blank = {f"{kind}/{name}": torch.zeros(p.shape) for name, p in model.named_parameters()}
    found = {key.partition("/")[2]: value for key, value in read_state(folder, blank, None).items()}
    if not found and kind == "ema":
        raise InputError(f"--weights {kind}: {folder} holds none; give master, or train with --ema_decay")
    return found
