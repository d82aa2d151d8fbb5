"""Every flag of ``arkfast quickstart``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from arkfast import command_line
from arkfast.console import ConsoleOptions


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig(ConsoleOptions):
    """Sizes of the toy task; the defaults are what the README's command runs."""

    headings: ClassVar[dict[str, str]] = {
        "output_dir": command_line.OUTPUT, "train_clips": command_line.DATA, "teacher_steps": command_line.TRAINING,
        "opd_top_k": command_line.OBJECTIVE, "jobs": command_line.MACHINE, "seed": command_line.DATA,
    }  # fmt: skip

    output_dir: Path = Path("runs/quickstart")
    """Folder of the corpus, the models and the report; what is complete there is used again."""
    train_clips: int = 4000
    """Labelled clips that the teacher learns from."""
    label_clips: int = 500
    """Labelled clips that the student learns from, a part of the teacher's."""
    pool_clips: int = 2000
    """Clips without labels, for the teacher to label or score."""
    dev_clips: int = 300
    """Clips on which WER is measured during training."""
    test_clips: int = 300
    """Clips with voices and noise that no training clip has."""
    min_digits: int = 3
    """Fewest digits of an utterance."""
    max_digits: int = 9
    """Most digits of an utterance."""
    teacher_steps: int = 1300
    """Training steps of the teacher."""
    student_steps: int = 1500
    """Training steps of the student before any arm."""
    arm_steps: int = 600
    """Further steps of every arm."""
    batch_size: int = 16
    """Clips in a step."""
    opd_top_k: int = 8
    """Top-k of both models in the union."""
    jobs: int = 2
    """Training processes at a time, one thread each."""
    seed: int = 0
    """Seed of the corpus, the weights and the order of the data."""

    def __post_init__(self) -> None:
        for name in ("train_clips", "label_clips", "pool_clips", "dev_clips", "teacher_steps", "student_steps", "arm_steps", "batch_size",
                     "opd_top_k", "jobs"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}: must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 1 << 53:
            raise ValueError(f"--seed: must be at least 0 and below 2⁵³, got {self.seed}")
        if self.test_clips < 3:
            raise ValueError(f"--test_clips: the report transcribes three of them, got {self.test_clips}")
        if self.label_clips > self.train_clips:
            raise ValueError(f"--label_clips: {self.label_clips} is more than --train_clips {self.train_clips}, of which they are a part")
