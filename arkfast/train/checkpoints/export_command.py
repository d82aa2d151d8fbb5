"""``arkfast export``: a Transformers model out of a checkpoint, in the precision that is asked for.

A checkpoint holds the master weights and their running average, in float32, beside model files in the precision of the model that training
began from. Adapters are merged anew, into that model.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from arkfast import command_line
from arkfast.command_line import parse
from arkfast.models.family import SpeechModel
from arkfast.records import InputError, JsonRow
from arkfast.train.lora import add_adapters, merged

DESCRIPTION = "Write the model of a training checkpoint as a Transformers folder."


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Which weights of which checkpoint, and where they go."""

    headings: ClassVar[dict[str, str]] = {"checkpoint": command_line.FIRST, "weights": command_line.OUTPUT}

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
    config = parse(ExportConfig, argv, prog="arkfast export", description=DESCRIPTION, position="checkpoint")
    from arkfast.models.bars import without_loading_bars

    without_loading_bars()
    step = export(config)
    print(f"{config.output}: {config.weights} weights of {step}", file=sys.stderr)
    return 0


def export(config: ExportConfig) -> Path:
    """Write the model; returns the checkpoint that it came from.

    Raises:
        InputError: no such checkpoint, a damaged one, one without the weights that are asked for, one of adapters whose model is no longer
            there, or an output that exists or cannot be written.
    """
    from arkfast.files import replace_folder
    from arkfast.models.family import find_family
    from arkfast.train.checkpoints.export import write_model
    from arkfast.train.checkpoints.run_folder import find_checkpoint, load_run

    if config.output.exists() and (not config.output.is_dir() or any(config.output.iterdir())):
        raise InputError(f"--output {config.output}: exists and is not empty; give a new folder")
    folder = find_checkpoint(config.checkpoint, note=lambda text: print(text, file=sys.stderr))
    family = find_family(folder)
    model: SpeechModel = family.load(folder, dtype="auto", attn_implementation="sdpa")
    dtype = model.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    run = load_run(folder) or {}
    if run.get("lora_rank") and (config.weights, dtype) != ("master", model.dtype):
        whole = _merged(folder, run, config.weights)
    else:
        whole = model.state_dict() | _read(folder, model, config.weights)
    weights = {name: whole[name].to(dtype) for name in model.state_dict()}
    replace_folder(config.output, lambda new: write_model(new, model, weights, family.processor(folder)))
    return folder


def _read(folder: Path, model: SpeechModel, kind: str) -> dict[str, torch.Tensor]:
    """The trained weights of those that the model has, by name, float32; what was frozen stands in the model alone."""
    from arkfast.train.checkpoints.tensors import read_state

    blank = {f"{kind}/{name}": torch.zeros(p.shape) for name, p in model.named_parameters()}
    found = {key.partition("/")[2]: value for key, value in read_state(folder, blank, None).items()}
    if not found and kind == "ema":
        raise InputError(f"--weights {kind}: {folder} holds none; give master, or train with --ema_decay")
    return found


def _merged(folder: Path, run: JsonRow, kind: str) -> dict[str, torch.Tensor]:
    """The weights of a run of adapters, float32: those of the model that it began from, with the checkpoint's adapters merged in."""
    from arkfast.models import load_model
    from arkfast.models.hub import checkpoint_folder
    from arkfast.train.checkpoints.identity import same_model
    from arkfast.train.checkpoints.run_folder import load_commits
    from arkfast.train.repositories import at_commit

    base = Path(run["student_model"])
    if commit := load_commits(folder).get("student_model"):
        base = checkpoint_folder(at_commit(base, commit), flag="the student's")
    if not (base / "config.json").is_file():
        raise InputError(
            f"--checkpoint {folder}: holds adapters of {base}, where no model is any more; put it back, or export with --weights master "
            "--dtype auto, which needs the checkpoint alone"
        )
    if differing := same_model(run.get("contents", {}).get("student_model", {}), base):
        raise InputError(
            f"--checkpoint {folder}: holds adapters of {base}, where another model stands by now ({differing}); put back the one that "
            "training began from, or export with --weights master --dtype auto, which needs the checkpoint alone"
        )
    model = load_model(base, dtype="float32")
    whole = dict(model.state_dict())
    add_adapters(model, rank=run["lora_rank"], alpha=run["lora_alpha"], seed=0, device=torch.device("cpu"))
    return merged(whole | _read(folder, model, kind), run["lora_alpha"] / run["lora_rank"])
