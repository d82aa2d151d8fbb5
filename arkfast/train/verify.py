"""``arkfast verify``: does a checkpoint hold together, and does a teacher fit it? Without data, and without a step.

Each check stands in a line of a table, passed or with the cause of its failure. The checks of prompt and tokenizer are those that every run
makes before its first step; a teacher is loaded as training would load it, which is where backends compare vocabularies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from arkfast import command_line
from arkfast.command_line import parse
from arkfast.data.tasks import find_task
from arkfast.distill.teachers import TeacherRequest, check_backend, load_teacher
from arkfast.models.family import SpeechModel, find_family
from arkfast.models.hub import checkpoint_folder, commit_of
from arkfast.models.weights import stored_shapes, weight_files
from arkfast.records import Interface
from arkfast.train.checks import Check, interface_checks, ran

DESCRIPTION = "Check a checkpoint without data: weights, tokenizer, prompt and, where one is given, whether a teacher fits it."
TOP_K = 32


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """What to check."""

    headings: ClassVar[dict[str, str]] = {"model_path": command_line.FIRST, "revision": command_line.MODEL}

    model_path: Path
    """Checkpoint to check: its folder, or a Hugging Face repository as organisation/name."""
    revision: str | None = None
    """Branch, tag or commit of the repository; its default branch by default."""
    teacher_model: Path | None = None
    """A teacher to check with it, folder or repository."""
    teacher_revision: str | None = None
    """Branch, tag or commit of the teacher's repository; its default branch by default."""
    teacher_backend: str = "arkasr"
    """How the teacher is run, as in arkfast train."""
    task: str = "asr"
    """What the model is to do."""

    def __post_init__(self) -> None:
        find_task(self.task)
        check_backend(self.teacher_backend)


def verify(config: VerifyConfig) -> list[Check]:
    """Every check, in order. Checks that make no sense after one that failed are left out.

    Raises:
        InputError: there is no such checkpoint at all.
    """
    folder = checkpoint_folder(config.model_path, revision=config.revision, flag="--model_path")
    teacher = None
    if config.teacher_model is not None:
        teacher = checkpoint_folder(config.teacher_model, revision=config.teacher_revision, flag="--teacher_model")
    checks = [Check("revision", False, _revision(folder))]
    family = find_family(folder)
    shells: list[SpeechModel] = []
    interfaces: list[Interface] = []

    def weights() -> str:
        shells.append(family.shell(folder, attn_implementation="sdpa"))
        return _weights(folder)

    def tokenizer() -> str:
        interfaces.append(family.interface(family.processor(folder).tokenizer, shells[0], where=f"--model_path {folder}"))
        interfaces[0].prompt(config.task)
        return f"{len(interfaces[0].tokenizer)} tokens"

    checks.append(ran("weights", weights))
    if shells:
        checks.append(ran("tokenizer", tokenizer))
    if interfaces:
        size, heard = int(shells[0].config.vocab_size), shells[0].audio_input if find_task(config.task).hears else None
        checks += interface_checks(interfaces[0], config.task, heard, size, folder, "--model_path")
    if teacher is not None:
        checks.append(Check("teacher revision", False, _revision(teacher)))
        if interfaces:
            checks.append(ran("teacher", _teacher(config, teacher, shells[0], interfaces[0])))
    return checks


def _revision(folder: Path) -> str:
    commit = commit_of(folder)
    return f"folder {folder}" if commit is None else f"commit {commit} in {folder}"


def _weights(folder: Path) -> str:
    size = sum(file.stat().st_size for file in weight_files(folder))
    return f"{len(stored_shapes(folder))} tensors as config.json asks for, {size / 1e9:.3g} GB"


def _teacher(config: VerifyConfig, folder: Path, student: SpeechModel, interface: Interface) -> Callable[[], str]:
    allowed = interface.allowed(config.task)

    def load() -> str:
        request = TeacherRequest(
            model=folder,
            student=student,
            interface=interface,
            task=config.task,
            allowed=allowed,
            top_k=min(TOP_K, allowed.count),
            device=torch.device("cpu"),
            dtype=torch.bfloat16,
            attn_implementation="sdpa",
        )
        load_teacher(config.teacher_backend, request).close()
        return f"{config.teacher_backend} loads it for this student"

    return load


def table(checks: Sequence[Check]) -> str:
    """The checks, one in a line."""
    width = max(len(check.name) for check in checks)
    return "\n".join(f"{'FAILED' if check.failed else 'passed'}  {check.name:<{width}}  {check.text}" for check in checks)


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code: 0 all passed, 1 a check failed."""
    config = parse(VerifyConfig, argv, prog="arkfast verify", description=DESCRIPTION, position="model_path")
    from arkfast.models.bars import without_loading_bars

    without_loading_bars()
    checks = verify(config)
    print(table(checks))
    failed = [check.name for check in checks if check.failed]
    print(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}" if failed else f"all {len(checks)} checks passed")
    return 1 if failed else 0
