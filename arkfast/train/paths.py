"""Whether what a run's flags name is there, asked before anything large is read."""

from __future__ import annotations

import os
from pathlib import Path

from arkfast.data.sources import expand
from arkfast.models.family import find_family
from arkfast.models.hub import VOCABULARIES, repository_of
from arkfast.models.weights import weight_files
from arkfast.records import InputError
from arkfast.train.config import TrainConfig


def check_paths(config: TrainConfig) -> None:
    """Look at every path of a configuration; which repository of the Hugging Face Hub there is is not asked.

    Raises:
        InputError: a manifest or a checkpoint is not there, a checkpoint lacks its tokenizer or its weights or is of a model that cannot be
            trained, or the run's folder cannot be written to.
    """
    for flag, manifest in (("--train_data", config.train_data), ("--eval_data", config.eval_data)):
        if manifest is not None:
            try:
                expand(manifest)
            except InputError as error:
                raise InputError(f"{flag}: {error}") from error
    if repository_of(config.student_model, revision=config.student_revision, flag="--student_model") is None:
        check_student(config.student_model)
    if config.stage != "sft" and config.teacher_model is not None:
        flag = "--teacher_model"
        if repository_of(config.teacher_model, revision=config.teacher_revision, flag=flag) is None:
            check_checkpoint(config.teacher_model, flag)
    if not config.calibrate_only:
        _check_writable(config.output_dir)


def check_student(folder: Path) -> None:
    """Look at what the folder of a student holds.

    Raises:
        InputError: it holds no checkpoint of a model that can be trained.
    """
    check_checkpoint(folder, "--student_model")
    try:
        find_family(folder)
        weight_files(folder)
    except InputError as error:
        raise InputError(f"--student_model {error}") from error
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise InputError(
            f"--student_model {folder}: no tokenizer there (none of {', '.join(VOCABULARIES)}); copy the checkpoint's tokenizer files "
            "beside its weights"
        )


def check_checkpoint(folder: Path, flag: str) -> None:
    """Look for the settings of a checkpoint.

    Raises:
        InputError: the folder lacks them.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{flag} {folder}: no config.json there; give the folder of a checkpoint")


def _check_writable(folder: Path) -> None:
    """Whether a folder can be written to, or made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"--output_dir {folder}: {there} is a file; give the path of a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--output_dir {folder}: {there} cannot be written to; give a folder that you may write to")
