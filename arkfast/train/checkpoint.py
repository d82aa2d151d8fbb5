"""Checkpoints: folders that Transformers loads, with what a resume needs beside the weights.

A checkpoint is written into a temporary folder and renamed when it is complete; nothing old is removed before that. State is
safetensors and JSON: no pickle is read or written. Layout of ``<output_dir>``::

    run.json                       what run this is
    metrics.jsonl                  one line a step
    checkpoints/global_step_N/     model, processor files, optimizer.safetensors (or optimizer/ with the ranks' shards),
                                   trainer_state.json, files.json
    best/  last/  ema/             model and processor files only
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from arkfast.config import to_dict
from arkfast.records import InputError
from arkfast.train.config import TrainConfig
from arkfast.train.state import FILES, STATE, damage, refuse_foreign, seal

IDENTITY = ("stage", "student_model", "teacher_model", "train_data", "seed", "per_device_train_batch_size", "micro_batches_per_step",
            "train_max_samples", "shuffle_train", "batch_seconds")  # fmt: skip
"""What makes two runs the same run: a resume may change anything else, the number of processes too."""


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


def begin_folder(target: Path) -> Path:
    """An empty temporary folder beside ``target``, to be filled and given to ``commit_folder``."""
    temporary, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        old.rename(target)  # an earlier call was killed between its two renames
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def commit_folder(temporary: Path, target: Path) -> None:
    """Put a complete folder in ``target``'s place; what stood there goes only then."""
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Fill a temporary folder with ``write`` and put it in ``target``'s place; what stood there goes when the new one is complete."""
    temporary = begin_folder(target)
    write(temporary)
    commit_folder(temporary, target)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


class RunFolder:
    """``output_dir``, claimed for one run.

    Args:
        config: the run's configuration.
        micro_batches: of all processes in a step.
        resume: what ``--resume_from_checkpoint`` says.

    Raises:
        InputError: the folder holds a run and no resume was asked for, or it holds another run than the one to be resumed.
    """

    def __init__(self, config: TrainConfig, *, micro_batches: int | None = None, resume: str | None = None) -> None:
        self.root = config.output_dir
        self._keep = config.max_ckpt_to_keep
        window = config.gradient_accumulation_steps if micro_batches is None else micro_batches
        claim = self.root / "run.json"
        ours = {key: value for key, value in (to_dict(config) | {"micro_batches_per_step": window}).items() if key in IDENTITY}
        if claim.exists():
            theirs = json.loads(claim.read_text(encoding="utf-8"))["identity"]
            # Runs of one process were once claimed with the number of their micro-batches under another name.
            theirs.setdefault("micro_batches_per_step", theirs.get("gradient_accumulation_steps"))
            differing = [key for key in IDENTITY if ours.get(key) != theirs.get(key)]
            if differing:
                shown = ", ".join(f"{key} {theirs.get(key)!r} there, {ours.get(key)!r} here" for key in differing)
                hint = "give another folder"
                if differing == ["micro_batches_per_step"]:
                    hint = f"give --micro_batches_per_step {theirs['micro_batches_per_step']} to go on with it, or another folder"
                raise InputError(f"--output_dir {self.root}: holds another run ({shown}); {hint}")
            if not (config.resume_from_checkpoint if resume is None else resume):
                raise InputError(
                    f"--output_dir {self.root}: holds this run already; give --resume_from_checkpoint auto to go on, or another folder"
                )
        elif self.root.exists() and any(self.root.iterdir()):
            raise InputError(f"--output_dir {self.root}: not empty and not a training run; give a new or empty folder")
        self.root.mkdir(parents=True, exist_ok=True)
        write_atomically(claim, json.dumps({"identity": ours, "config": to_dict(config)}, indent=2) + "\n")

    def find_resume(self, wanted: str, *, note: Callable[[str], None] = print) -> Path | None:
        """The checkpoint folder that ``--resume_from_checkpoint`` means; None to start anew.

        Args:
            wanted: a folder, ``latest``, ``auto`` or nothing.
            note: told of each damaged checkpoint that ``latest`` and ``auto`` pass over.

        Raises:
            InputError: there is none, or the named one is damaged or another program's.
        """
        flag = f"--resume_from_checkpoint {wanted}"
        if not wanted:
            return None
        if wanted not in ("latest", "auto"):
            return _whole(Path(wanted), flag)
        newest = _newest_whole(self.root, flag, note)
        if newest is None and wanted == "latest":
            raise InputError(f"{flag}: {self.root / 'checkpoints'} holds no checkpoint; auto would start anew")
        return newest

    def begin(self, step: int) -> Path:
        """The temporary folder of step ``step``'s checkpoint."""
        return begin_folder(self.root / "checkpoints" / f"global_step_{step}")

    def commit(self, temporary: Path, state: TrainerState, *, world: int = 1) -> None:
        """Complete a checkpoint: write where the run stands, seal it, put it in place and remove the oldest beyond those kept.

        The newest ones are kept, and that of the lowest WER.
        """
        (temporary / STATE).write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
        seal(temporary, world=world)
        commit_folder(temporary, self.root / "checkpoints" / f"global_step_{state.step}")
        steps = _steps(self.root)
        for old in sorted(steps)[: -self._keep]:
            if old != state.best_step:
                shutil.rmtree(steps[old])

    def export(self, name: str, export: Callable[[Path], None]) -> None:
        """Write ``best``, ``last`` or ``ema``."""
        replace_folder(self.root / name, export)


def find_checkpoint(folder: Path, *, note: Callable[[str], None]) -> Path:
    """A whole checkpoint: the folder itself, or the newest of the run that it is.

    Raises:
        InputError: there is none there, or it is damaged.
    """
    flag = f"--checkpoint {folder}"
    newest = _newest_whole(folder, flag, note) if (folder / "checkpoints").is_dir() else _whole(folder, flag)
    if newest is None:
        raise InputError(f"{flag}: the run has no checkpoint yet; give a folder checkpoints/global_step_N")
    return newest


def _whole(folder: Path, flag: str) -> Path:
    refuse_foreign(folder, flag)
    if not (folder / STATE).is_file():
        raise InputError(
            f"{flag}: not a checkpoint folder (no {STATE}); give checkpoints/global_step_N of a run, or latest or auto to resume"
        )
    if reason := damage(folder):
        raise InputError(f"{flag}: damaged ({reason}); give an earlier one, or latest, which passes over it")
    return folder


def _newest_whole(root: Path, flag: str, note: Callable[[str], None]) -> Path | None:
    steps = _steps(root)
    damaged = []
    for step in sorted(steps, reverse=True):
        if (reason := damage(steps[step])) is None:
            return steps[step]
        damaged.append(f"{steps[step]} is damaged ({reason})")
        note(f"{flag}: {damaged[-1]}; the one before it is used")
    refuse_foreign(root / "checkpoints", flag)
    if damaged:
        raise InputError(f"{flag}: no checkpoint is whole: {'; '.join(damaged)}; remove them to start anew")
    return None


def _steps(root: Path) -> dict[int, Path]:
    """A run's checkpoints by step, whole or damaged."""
    found = {}
    for folder in (root / "checkpoints").glob("global_step_*"):
        match = re.fullmatch(r"global_step_(\d+)", folder.name)
        if match and ((folder / STATE).is_file() or (folder / FILES).is_file()):
            found[int(match[1])] = folder
    return found


def load_state(folder: Path) -> TrainerState:
    """Where the run of a checkpoint folder stands."""
    return TrainerState(**json.loads((folder / STATE).read_text(encoding="utf-8")))
