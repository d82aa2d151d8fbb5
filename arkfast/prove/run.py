"""A proof from end to end: ours, then Transformers' own beside it, then the steps.

Models of this library leave the device before Transformers' arrive, so that two copies of a checkpoint never lie in memory at once.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from arkfast.command_line import to_dict
from arkfast.distill.teachers import Teacher
from arkfast.distill.teachers.direct import DirectTeacher
from arkfast.models.family import find_family, read_config
from arkfast.models.hub import checkpoint_folder
from arkfast.models.outside import Outside, find_outside
from arkfast.prove import student_checks, teacher_checks, training
from arkfast.prove.clips import Clip, choose, dev_manifest
from arkfast.prove.config import ProveConfig
from arkfast.prove.ours import Heard, Ids, Scored, hear, load_its_teacher, load_student, score
from arkfast.prove.outcome import Outcome, Stopwatch, Verdict
from arkfast.prove.report import Report
from arkfast.prove.teacher_checks import Dense
from arkfast.records import InputError
from arkfast.train.parallel import Parallel


def prove(config: ProveConfig) -> Report:
    """Compare and train.

    Raises:
        InputError: a flag, a checkpoint's folder or the data cannot be used; what differs is a comparison that failed instead.
    """
    if config.output_dir.exists() and not (config.output_dir.is_dir() and not any(config.output_dir.iterdir())):
        raise InputError(f"--output_dir {config.output_dir}: is no empty folder; give a folder of its own to each proof")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("arkfast prove is one process; start it without torchrun")
    device = Parallel(config.device).device
    watch = Stopwatch(device)
    student = checkpoint_folder(config.student_model, flag="--student_model")
    teacher = checkpoint_folder(config.teacher_model, flag="--teacher_model")
    find_family(student)
    read_config(teacher)
    clips = choose(config)
    with _exact():
        outcomes, sound = _compared(config, student, teacher, clips, device, watch)
    outcomes, trained = _trained(config, student, teacher, outcomes, sound, watch)
    return Report(outcomes=outcomes, parts=watch.parts, trained=trained, settings=to_dict(config))


def _compared(
    config: ProveConfig, student_folder: Path, teacher_folder: Path, clips: Sequence[Clip], device: torch.device, watch: Stopwatch
) -> tuple[list[Outcome], str]:
    """Every comparison, and why the steps cannot be taken; empty where they can."""
    found: list[Outcome] = []
    try:
        ids, heard, scored, direct = _ours(config, student_folder, teacher_folder, clips, device, watch, found)
    except _Unusable as error:
        return [*found, Outcome(name="the student's checkpoint", verdict="FAIL", detail=str(error))], "the student cannot be loaded"
    _free(device)
    with watch("Transformers: student"):
        lines, own = _student_beside(ids, student_folder, heard, scored, clips, device)
    found += lines
    _free(device)
    if scored is None:
        return found, "the teacher cannot be loaded beside the student"
    with watch("Transformers: teacher"):
        other = _outside(teacher_folder, device) if direct else _NotRun(_ALIGNED)
        found += _teacher_beside(ids, other, heard, scored, clips, own)
    _free(device)
    return found, ""


class _Unusable(Exception):
    """The student cannot be loaded."""


def _ours(
    config: ProveConfig,
    student_folder: Path,
    teacher_folder: Path,
    clips: Sequence[Clip],
    device: torch.device,
    watch: Stopwatch,
    found: list[Outcome],
) -> tuple[Ids, Heard, Scored | None, bool]:
    """What this library computes, and whether the teacher scores the student's ids as they are; its models are gone when it returns.

    Raises:
        _Unusable: see there.
    """
    with watch("ours: load student and teacher"):
        try:
            student = load_student(student_folder, config, device)
        except InputError as error:
            raise _Unusable(str(error)) from error
        found.append(student_checks.tokenizer(student.ids.interface.tokenizer, clips))
        teacher: Teacher | None = None
        try:
            teacher = load_its_teacher(teacher_folder, config, student, device)
            found.append(teacher_checks.vocabulary(student.ids, teacher))
        except InputError as error:
            found.append(teacher_checks.refused(student.ids, teacher_folder, error))
    with watch("ours: features, encoder, greedy"):
        heard = hear(student, teacher, clips, config, device)
    n_mels = student.ids.interface.n_mels
    assert n_mels is not None
    found += [student_checks.features(heard, clips, n_mels), student_checks.batch(heard, clips)]
    if teacher is None:
        return student.ids, heard, None, False
    with watch("ours: teacher scores and loss"):
        scored = score(student, teacher, heard)
    teacher.close()
    return student.ids, heard, scored, isinstance(teacher, DirectTeacher)


@dataclass(frozen=True)
class _NotRun:
    """Transformers' own model could not be run."""

    why: str
    verdict: Verdict = "not compared"


_ALIGNED = "this backend is no model that scores the student's ids as they are, so there is no dense forward to hold beside it"


def _outside(folder: Path, device: torch.device) -> Outside | _NotRun:
    """The checkpoint in Transformers' own classes, or why it is not. A kind of checkpoint joins with a module of its family."""
    load = find_outside(folder)
    if load is None:
        kind = read_config(folder).get("model_type")
        return _NotRun(f"there is no dense forward in Transformers of a checkpoint of kind {kind!r} here")
    try:
        return load(folder, device)
    except InputError as error:
        return _NotRun(str(error), "FAIL")


def _student_beside(
    ids: Ids, folder: Path, heard: Heard, scored: Scored | None, clips: Sequence[Clip], device: torch.device
) -> tuple[list[Outcome], Dense | None]:
    other = _outside(folder, device)
    if isinstance(other, _NotRun):
        return [Outcome(name=name, verdict=other.verdict, detail=other.why) for name in student_checks.OUTSIDE], None
    lines = student_checks.outside(ids, heard, clips, other)
    return lines, None if scored is None else teacher_checks.dense(other, ids, heard, scored, clips)


def _teacher_beside(
    ids: Ids, other: Outside | _NotRun, heard: Heard, scored: Scored, clips: Sequence[Clip], own: Dense | None
) -> list[Outcome]:
    if isinstance(other, _NotRun):
        line = Outcome(name=teacher_checks.SCORES, verdict=other.verdict, detail=other.why)
        return [line, *teacher_checks.losses(heard, scored, None, own)]
    there = teacher_checks.dense(other, ids, heard, scored, clips)
    line = teacher_checks.scores(heard, scored, there, other.made_of, ids.interface.tokenizer)
    return [line, *teacher_checks.losses(heard, scored, there, own)]


def _trained(
    config: ProveConfig, student: Path, teacher: Path, outcomes: list[Outcome], sound: str, watch: Stopwatch
) -> tuple[list[Outcome], training.Trained]:
    if sound or not config.steps:
        trained = training.left_out(sound or "--steps 0 leaves them out")
    else:
        with watch(f"{config.steps} steps, WER before and after"):
            dev = dev_manifest(config, config.output_dir / "dev.jsonl")
            run = training.train_config(config, student, teacher, dev, config.output_dir / "train")
            trained = training.train(run, max_wer_rise=config.max_wer_rise)
    return [*outcomes, *trained.outcomes], trained


@contextmanager
def _exact() -> Iterator[None]:
    """Switch TF32 off: its ten bits of fraction are too few for the differences that are looked for."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
