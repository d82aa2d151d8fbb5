"""What the quickstart trains: a teacher, a base student, and the arms that go on from it, each as calls of ``arkfast train``.

This is the plan alone; ``run`` starts the processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from arkfast.quickstart.config import QuickstartConfig
from arkfast.quickstart.corpus import Corpus


class Layers(TypedDict):
    """How many layers and heads a model has; arguments of ``new_checkpoint``."""

    encoder_layers: int
    encoder_attention_heads: int
    num_hidden_layers: int
    num_attention_heads: int


class Size(Layers):
    """All that says how large a model is; arguments of ``new_checkpoint``."""

    d_model: int
    encoder_ffn_dim: int
    hidden_size: int


LAYERS: Layers = {"encoder_layers": 2, "encoder_attention_heads": 4, "num_hidden_layers": 2, "num_attention_heads": 4}
TEACHER_SIZE: Size = {"d_model": 96, "encoder_ffn_dim": 192, "hidden_size": 96, **LAYERS}
STUDENT_SIZE: Size = {"d_model": 64, "encoder_ffn_dim": 128, "hidden_size": 64, **LAYERS}
INITIALIZER_RANGE = 0.05
"""About half of 1/√width at these widths. At Transformers' 0.02 a narrow model takes about twice the steps to align audio and text."""
VOCAB_SIZE = 330
"""Room for 256 bytes, the added tokens, and every word of the task as one token."""
SCRATCH_RATE = 2e-3
"""Peak learning rate of a model that starts from random weights."""
ARM_RATE = 1e-3
"""Peak learning rate of an arm."""
CTC_WEIGHT = 0.5
"""Without the CTC term a model that starts from random weights never aligns audio and text: its WER stays near 90."""
CURVE_POINTS = 8
"""How often WER is measured along an arm."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One call of ``arkfast train``."""

    folder: Path
    """Its output folder."""
    flags: dict[str, Any]
    """Its flags, the output folder left out."""

    @property
    def model(self) -> Path:
        """The model that it leaves."""
        return self.folder / "last"

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return int(self.flags["max_steps"])

    def words(self) -> list[str]:
        """The command's words after ``arkfast``."""
        return ["train", *(word for name, value in {**self.flags, "output_dir": self.folder}.items() for word in (f"--{name}", str(value)))]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of the table: one stage after the other."""

    name: str
    """A key of the report's ``ARM_LABELS``."""
    stages: tuple[Stage, ...]
    """In order; each starts from the one before."""
    after: tuple[str, ...] = ()
    """Arms whose models it needs."""

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)


def plan(root: Path, config: QuickstartConfig, corpus: Corpus) -> list[Arm]:
    """The arms in the order in which they are best started: the long ones of each wave first."""
    longest = corpus.recipe.digits[1]
    common = {
        "per_device_train_batch_size": config.batch_size, "per_device_eval_batch_size": 50, "eval_data": corpus.dev,
        "asr_opd_max_new_tokens": longest + longest // 2 + 4, "lr_scheduler_type": "cosine", "min_lr_ratio": 0.05, "adam_beta2": 0.98,
        "weight_decay": 0.01, "dataloader_num_workers": 0, "feature_cache_mb": 2048, "num_threads": 1, "device": "cpu",
        "seed": config.seed + 1, "resume_from_checkpoint": "auto",
    }  # fmt: skip

    def stage(folder: str, kind: str, student: Path, data: Path, steps: int, rate: float, **more: Any) -> Stage:
        every = -(-steps // CURVE_POINTS)
        flags = {"stage": kind, "student_model": student, "train_data": data, "max_steps": steps, "learning_rate": rate}
        return Stage(folder=root / folder, flags={**flags, "eval_freq": every, "save_freq": max(every, 200), **common, **more})

    scratch = {"ctc_weight": CTC_WEIGHT, "warmup_steps": 50}
    teacher = stage("teacher", "sft", root / "new" / "teacher", corpus.train, config.teacher_steps, SCRATCH_RATE, **scratch)
    base = stage("base", "sft", root / "new" / "student", corpus.labels, config.student_steps, SCRATCH_RATE, **scratch)
    taught = {"teacher_model": teacher.model, "warmup_steps": 20}
    distil = {**taught, "opd_top_k": config.opd_top_k, "gates": "warn"}  # a short rehearsal may begin with a student that knows little
    half = config.arm_steps // 2
    first = stage("td_opd/td", "td", base.model, corpus.pool, half, ARM_RATE, **taught)
    second = stage("td_opd/opd", "opd", first.model, corpus.pool, config.arm_steps - half, ARM_RATE, **distil)
    opd = stage("opd", "opd", base.model, corpus.pool, config.arm_steps, ARM_RATE, **distil)
    sft = stage("sft", "sft", base.model, corpus.labels, config.arm_steps, ARM_RATE, warmup_steps=20)
    pseudo = stage("pseudo", "td", base.model, corpus.pool, config.arm_steps, ARM_RATE, **taught)
    return [
        Arm(name="teacher", stages=(teacher,)),
        Arm(name="base", stages=(base,)),
        Arm(name="opd", stages=(opd,), after=("base", "teacher")),
        Arm(name="td_opd", stages=(first, second), after=("base", "teacher")),
        Arm(name="sft", stages=(sft,), after=("base",)),
        Arm(name="pseudo", stages=(pseudo,), after=("base", "teacher")),
    ]
