"""Checkpoints: folders that Transformers loads, with what a resume needs beside the weights.

A checkpoint is written into a temporary folder and renamed when it is complete; nothing old is removed before that. State is
safetensors and JSON: no pickle is read or written. Layout of ``<output_dir>``::

    run.json                       what run this is
    metrics.jsonl                  one line a step
    checkpoints/global_step_N/     model, processor files, optimizer.safetensors, trainer_state.json
    best/  last/                   model and processor files only
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from arkfast.config import to_dict
from arkfast.records import InputError
from arkfast.train.config import TrainConfig

IDENTITY = ("stage", "student_model", "teacher_model", "train_data", "seed", "per_device_train_batch_size", "gradient_accumulation_steps",
            "train_max_samples", "shuffle_train", "batch_seconds")  # fmt: skip
"""What makes two runs the same run: a resume may change anything else."""


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """Where a run stands."""

    step: int
    """Optimizer steps taken or skipped."""
    cursor: int
    """Rows of the data order consumed."""
    best_wer: float | None
    """Lowest WER on the evaluation manifest so far, in percent."""
    best_step: int | None
    """The step that reached it."""
    skipped: int
    """Steps in a row, up to now, that were skipped for a number that was not finite."""


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Fill a temporary folder with ``write`` and put it in ``target``'s place; what stood there goes when the new one is complete."""
    temporary, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        old.rename(target)  # an earlier call was killed between its two renames
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


class RunFolder:
    """``output_dir``, claimed for one run.

    Args:
        config: the run's configuration.

    Raises:
        InputError: the folder holds a run and no resume was asked for, or it holds another run than the one to be resumed.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.root = config.output_dir
        self._keep = config.max_ckpt_to_keep
        claim = self.root / "run.json"
        ours = {key: value for key, value in to_dict(config).items() if key in IDENTITY}
        if claim.exists():
            theirs = json.loads(claim.read_text(encoding="utf-8"))["identity"]
            differing = [key for key in IDENTITY if ours.get(key) != theirs.get(key)]
            if differing:
                shown = ", ".join(f"{key} {theirs.get(key)!r} there, {ours.get(key)!r} here" for key in differing)
                raise InputError(f"--output_dir {self.root}: holds another run ({shown}); give another folder")
            if not config.resume_from_checkpoint:
                raise InputError(
                    f"--output_dir {self.root}: holds this run already; give --resume_from_checkpoint auto to go on, or another folder"
                )
        elif self.root.exists() and any(self.root.iterdir()):
            raise InputError(f"--output_dir {self.root}: not empty and not a training run; give a new or empty folder")
        self.root.mkdir(parents=True, exist_ok=True)
        write_atomically(claim, json.dumps({"identity": ours, "config": to_dict(config)}, indent=2) + "\n")

    def find_resume(self, wanted: str) -> Path | None:
        """The checkpoint folder that ``--resume_from_checkpoint`` means; None to start anew."""
        if not wanted:
            return None
        if wanted in ("latest", "auto"):
            steps = self._steps()
            if not steps and wanted == "latest":
                raise InputError(f"--resume_from_checkpoint latest: {self.root / 'checkpoints'} holds no checkpoint; auto would start anew")
            return steps[max(steps)] if steps else None
        folder = Path(wanted)
        if not (folder / "trainer_state.json").is_file():
            raise InputError(f"--resume_from_checkpoint {folder}: not a checkpoint folder (no trainer_state.json); give latest or auto")
        return folder

    def save(self, state: TrainerState, export: Callable[[Path], None], optimizer: Mapping[str, torch.Tensor]) -> None:
        """Write ``checkpoints/global_step_N`` and remove the oldest beyond those kept."""
        from safetensors.torch import save_file

        def write(folder: Path) -> None:
            export(folder)
            save_file({key: value.contiguous() for key, value in optimizer.items()}, folder / "optimizer.safetensors")
            (folder / "trainer_state.json").write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")

        replace_folder(self.root / "checkpoints" / f"global_step_{state.step}", write)
        steps = self._steps()
        for old in sorted(steps)[: -self._keep]:
            shutil.rmtree(steps[old])

    def export(self, name: str, export: Callable[[Path], None]) -> None:
        """Write ``best`` or ``last``."""
        replace_folder(self.root / name, export)

    def _steps(self) -> dict[int, Path]:
        found = {}
        for folder in (self.root / "checkpoints").glob("global_step_*"):
            match = re.fullmatch(r"global_step_(\d+)", folder.name)
            if match and (folder / "trainer_state.json").is_file():
                found[int(match[1])] = folder
        return found


def load_resume(folder: Path) -> tuple[TrainerState, dict[str, Any]]:
    """The trainer's state and the optimizer's tensors of a checkpoint folder."""
    from safetensors.torch import load_file

    state = TrainerState(**json.loads((folder / "trainer_state.json").read_text(encoding="utf-8")))
    return state, load_file(folder / "optimizer.safetensors")
