"""Where a run's models come from: folders as they are given, or repositories of the Hugging Face Hub, each at one commit for all processes.

One process of each machine fetches them, and a run that is resumed stays with the commits that it had before.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from arkfast.models.hub import checkpoint_folder, commit_of, pinned, repository_of
from arkfast.train.checkpoints.tensors import STATE
from arkfast.train.config import TrainConfig
from arkfast.train.parallel import Parallel

REVISIONS = {"student_model": "student_revision", "teacher_model": "teacher_revision"}
"""The flag that names a model → the one that names its revision."""


def with_folders(config: TrainConfig, parallel: Parallel) -> tuple[TrainConfig, dict[str, str]]:
    """The configuration with a local folder in the place of each model, and the commits of those that came from repositories.

    Rank 0 decides which commits they are; then the first process of each machine fetches what its cache lacks, while the others wait and
    find it there. A run that is resumed stays with the commits that it began with, wherever their branch stands by now.

    Args:
        config: names the models, and the run whose commits are kept.
        parallel: the processes; every rank calls.

    Returns:
        The configuration, and the commits by the flags' names.

    Raises:
        InputError: a model cannot be had; on rank 0, the other ranks exit with it.
    """
    names: dict[str, Path] = {}
    with parallel.agreeing():
        if parallel.is_first:
            names = _repositories(config)
            for model, name in names.items():
                print(f"arkfast train: --{model} {name}: fetched where the cache lacks it", file=sys.stderr)
    names = parallel.broadcast(names)
    folders: dict[str, Path] = {}
    for download in (True, False):
        with parallel.agreeing():
            if parallel.is_first_here == download:
                folders = {model: checkpoint_folder(name, flag=f"--{model}", download=download) for model, name in names.items()}
    local: dict[str, Any] = {**folders, **dict.fromkeys(REVISIONS.values())}
    return replace(config, **local), {model: str(commit_of(folder)) for model, folder in folders.items()}


def _repositories(config: TrainConfig) -> dict[str, Path]:
    """The models that are repositories, as ``id@commit``."""
    names, known = {}, recorded_commits(config)
    student, teacher = (config.student_model, config.student_revision), (config.teacher_model, config.teacher_revision)
    for model, (name, revision) in {"student_model": student, "teacher_model": teacher}.items():
        if name is None:
            continue
        if model in known:
            names[model] = at_commit(name, known[model])
        elif repository_of(name, revision=revision, flag=f"--{model}") is not None:
            names[model] = pinned(name, revision=revision, flag=f"--{model}")
    return names


def recorded_commits(config: TrainConfig) -> dict[str, str]:
    """The commits that the run to be resumed began with, of those models that still have the names that they had."""
    found: dict[str, str] = {}
    named = config.resume_from_checkpoint not in ("", "latest", "auto")
    files = [(Path(config.resume_from_checkpoint) / STATE, "run")] if named else []
    for file, identity in (*files, (config.output_dir / "run.json", "identity")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            run, commits = dict(record[identity]), dict(record["commits"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # nothing to keep to; what is wrong with the file is told when the run is opened
        for model, commit in commits.items():
            if _as_named(run, model) == _as_named(vars(config), model):
                found.setdefault(model, str(commit))
    return found


def at_commit(name: str | Path, commit: str) -> Path:
    """The name of a repository, with or without a revision, at a commit."""
    return Path(f"{str(name).partition('@')[0]}@{commit}")


def _as_named(flags: Mapping[str, Any], model: str) -> tuple[str, str | None]:
    return str(flags.get(model)), flags.get(REVISIONS.get(model, ""))
