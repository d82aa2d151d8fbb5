"""Every flag of ``arkfast prove``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from arkfast import command_line


@dataclass(frozen=True, kw_only=True)
class ProveConfig:
    """Which checkpoints to prove, on what, and where the report goes."""

    headings: ClassVar[dict[str, str]] = {
        "student_model": command_line.FIRST, "teacher_backend": command_line.MODEL, "train_data": command_line.FIRST,
        "clips": command_line.CHECKS, "steps": command_line.TRAINING, "max_wer_rise": command_line.CHECKS,
        "max_audio_seconds": command_line.DATA, "model_dtype": command_line.MODEL, "device": command_line.MACHINE,
        "seed": command_line.TRAINING,
    }  # fmt: skip

    student_model: Path
    """The student's checkpoint: its folder, or a Hugging Face repository as organisation/name or organisation/name@revision."""
    teacher_model: Path
    """The teacher's checkpoint, folder or repository."""
    teacher_backend: str = "arkasr"
    """How the teacher is run, as in arkfast train."""
    train_data: Path
    """Manifest to take clips from and to train on."""
    eval_data: Path | None = None
    """Manifest with references on which WER is measured before and after; without it, rows of train_data that have references."""
    output_dir: Path
    """Folder of the report and of the training run; it must be empty or not there yet."""
    clips: int = 4
    """Clips on which this library and Transformers are compared, of different lengths, from all over the manifest."""
    max_new_tokens: int = 64
    """Longest answer that is compared and trained on, the end token included."""
    steps: int = 200
    """Steps of on-policy distillation after the comparisons; 0 leaves the training out, which the report says."""
    batch_size: int = 4
    """Utterances in a step."""
    learning_rate: float = 1e-5
    """Peak learning rate of the steps."""
    opd_top_k: int = 32
    """How many of each model's best ids enter the union."""
    max_wer_rise: float = 2.0
    """By how many points WER may be higher after the steps than before."""
    gates: Literal["strict", "warn", "off"] = "strict"
    """What the training does about a start that cannot work, as in arkfast train."""
    max_audio_seconds: float = 30.0
    """Longer audio is an error."""
    model_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the training; the comparisons are made in float32 always."""
    device: str = "auto"
    """cuda, cpu or auto."""
    seed: int = 1
    """Seed of the training."""

    def __post_init__(self) -> None:
        for name in ("clips", "max_new_tokens", "batch_size", "opd_top_k"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("steps", "max_wer_rise", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{name}: must not be negative, got {getattr(self, name)}")
        for name in ("learning_rate", "max_audio_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name}: must be above 0, got {getattr(self, name)}")
        from arkfast.distill.teachers import check_backend

        check_backend(self.teacher_backend)
