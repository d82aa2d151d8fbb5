"""The models of a run: the student as it is trained and the teacher as it is asked.

Knows checkpoints, precisions and which inputs fit each other; knows no data and no step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from arkfast.data import Prompt
from arkfast.distill import CTCHead
from arkfast.distill.teachers import ArkasrTeacher
from arkfast.distill.teachers.arkasr import check_same_vocabulary
from arkfast.engine import Engine
from arkfast.models import ArkasrProcessor, load_model
from arkfast.records import AllowedTokens, Batch, InputError, Rollout
from arkfast.train.checkpoints.export import whole_weights
from arkfast.train.config import TrainConfig
from arkfast.train.lora import add_adapters, merged
from arkfast.train.optim import MasterAdamW
from arkfast.train.parallel import Parallel
from arkfast.train.stored import StoredModel
from arkfast.train.student import ShardedStudent, Student, freeze


def compute_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """What forward and backward run in."""
    automatic = torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"auto": automatic, "bfloat16": torch.bfloat16, "float32": torch.float32}[config.model_dtype]


def is_sharded(config: TrainConfig, parallel: Parallel) -> bool:
    """Whether the student is cut into shards.

    Raises:
        InputError: several processes that would each train a model of their own.
    """
    if config.sharding == "none" and parallel.world > 1:
        raise InputError(f"--sharding none: there are {parallel.world} processes; give auto, optimizer or full, or start one process")
    return parallel.world > 1 if config.sharding == "auto" else config.sharding != "none"


class Learner:
    """The student with all that training it needs: its processor, prompt, engine, optimizer and what is not trained.

    Args:
        config: which model, which parts, how it is sharded.
        parallel: the processes.

    Raises:
        InputError: the checkpoint cannot be used.
    """

    def __init__(self, config: TrainConfig, parallel: Parallel) -> None:
        sharded = is_sharded(config, parallel)
        device, compute = parallel.device, compute_dtype(config, parallel.device)
        self.processor = ArkasrProcessor.from_pretrained(_checkpoint_folder(config.student_model, "--student_model"))
        self.tokenizer = self.processor.tokenizer
        stored: StoredModel | None = None
        model: Any
        if sharded:
            stored = StoredModel(config.student_model, config.student_attn_implementation)
            model, self.export_dtype = stored.model, stored.dtype
        else:
            model = load_model(config.student_model, dtype="auto", attn_implementation=config.student_attn_implementation)
            self.export_dtype = model.dtype
            model = model.float().to(device)  # in eval mode: the family has no dropout, so that training mode computes the same
        self.prompt = Prompt.asr(self.tokenizer, merge_factor=model.config.merge_factor)
        self.allowed = AllowedTokens.asr(self.tokenizer, model.config)
        self.top_k = min(config.opd_top_k, self.allowed.count)
        self.ctc_head: CTCHead | None = None
        if config.ctc_weight:
            head = CTCHead(model.config.hidden_size, model.config.vocab_size, int(self.tokenizer.pad_token_id), seed=config.seed)
            self.ctc_head = head.to(device)
        self.frozen = self._freeze(model, config, device, compute, stored)
        """Weights that are not trained, by name, as the checkpoint has them."""
        self._names = {name for name, _ in model.named_parameters()}
        self._lora_scale = config.lora_alpha / config.lora_rank if config.lora_rank else 0.0
        self.sharded, self.model, self._stored = sharded, model, stored
        if sharded:
            parallel.groups(config.shard_group_size)

    def place(self, config: TrainConfig, parallel: Parallel) -> None:
        """Put the student where it trains; every rank calls it, once all have loaded what they need."""
        self.student = self._student(config, parallel)
        # The engine before the optimizer, which gives whole parameters their compute precision: it looks at shapes only.
        topk = self.top_k if config.stage == "opd" else 0
        self.engine = WholeEngine(Engine(self.model, allowed=self.allowed, topk=topk), self.student)

    @staticmethod
    def _freeze(
        model: Any, config: TrainConfig, device: torch.device, compute: torch.dtype, stored: StoredModel | None
    ) -> dict[str, torch.Tensor]:
        """Take out of training what is not trained; nothing that is frozen needs more than the compute precision."""
        if config.lora_rank:
            names = [name for name, _ in model.named_parameters()]
            add_adapters(model, rank=config.lora_rank, alpha=config.lora_alpha, seed=config.seed, device=device)
        else:
            names = freeze(model, config.freeze)
        if stored is not None:
            return {name: stored.read(name).to(stored.dtype) for name in names}
        parameters = dict(model.named_parameters())
        frozen = {name: parameters[name].detach().cpu().clone() for name in names}
        for name in names:
            parameters[name].data = parameters[name].data.to(compute)
        return frozen

    def _student(self, config: TrainConfig, parallel: Parallel) -> Student:
        stored, compute = self._stored, compute_dtype(config, parallel.device)
        if stored is None:
            return Student(self.model, self.ctc_head, checkpointing=config.activation_checkpointing)
        parallel.open()
        stored.fill_buffers(parallel.device)
        return ShardedStudent(
            self.model,
            self.ctc_head,
            mesh=parallel.mesh(config.shard_group_size),
            compute_dtype=compute,
            fill=lambda unit: stored.fill(unit, parallel.device, compute),
            free_early=config.sharding == "full",
            checkpointing=config.activation_checkpointing,
        )

    def whole_weights(self, weights: dict[str, torch.Tensor], *, keep: bool) -> dict[str, torch.Tensor]:
        """The model's weights as they are exported: those of the optimizer's that belong to it, whole, and the frozen ones.

        Args:
            weights: the optimizer's; every rank must call with its own.
            keep: False on ranks that only take part.
        """
        own = {name: weight for name, weight in weights.items() if name in self._names}
        if not self._lora_scale:
            return whole_weights(own, self.frozen, self.export_dtype, keep=keep)
        whole = merged(whole_weights(own, self.frozen, torch.float32, keep=keep), self._lora_scale)
        return {name: weight.to(self.export_dtype) for name, weight in whole.items()}

    def idle_batch(self) -> Batch:
        """An eightieth of a second of silence with an empty transcript, for a rank that has nothing to do in a round."""
        frames = 8
        ids = torch.tensor([self.prompt.ids(frames)])
        one = torch.ones(1, dtype=torch.int64)
        return Batch(
            ids=("idle",),
            keys=torch.zeros(1, dtype=torch.int64),
            mel=torch.zeros(1, self.model.config.whisper_config.num_mel_bins, frames),
            mel_lens=one * frames,
            input_ids=ids,
            prompt_lens=one * ids.shape[1],
            target_ids=one[None] * self.allowed.stop_ids[0],
            target_lens=one,
        )


class WholeEngine:
    """The decoding engine of a student whose weights are whole while it decodes.

    Args:
        engine: an ``Engine``.
        student: whose model it decodes with.
    """

    def __init__(self, engine: Engine, student: Student) -> None:
        self._engine, self._student = engine, student
        self.blocked, self.allowed, self.stop_ids = engine.blocked, engine.allowed, engine.stop_ids

    def rollout(self, batch: Batch, **options: Any) -> Rollout:
        """See ``Engine.rollout``. No collective runs in it, so ranks may decode for as long as their own rows take."""
        with self._student.whole():
            return self._engine.rollout(batch, **options)


def make_optimizer(learner: Learner, config: TrainConfig, parallel: Parallel, total: Any) -> MasterAdamW:
    """AdamW over what is trained; ``total`` adds a step's numbers up over ranks."""
    compute = compute_dtype(config, parallel.device)
    return MasterAdamW(learner.student.parameters, config, compute, total=total)


def load_teacher(config: TrainConfig, parallel: Parallel, learner: Learner) -> ArkasrTeacher:
    """The teacher, whole on every rank.

    Raises:
        InputError: the checkpoint cannot be used, or does not fit the student's vocabulary or features.
    """
    folder = config.teacher_model
    assert folder is not None
    tokenizer = ArkasrProcessor.from_pretrained(_checkpoint_folder(folder, "--teacher_model")).tokenizer
    check_same_vocabulary(learner.tokenizer, tokenizer, learner.allowed)
    compute = compute_dtype(config, parallel.device)
    model = load_model(folder, dtype=compute, attn_implementation=config.teacher_attn_implementation, device=parallel.device)
    bins, ours = model.config.whisper_config.num_mel_bins, learner.model.config.whisper_config.num_mel_bins
    if bins != ours:
        raise InputError(
            f"--teacher_model {folder}: takes {bins} mel bins, the student {ours}; the arkasr teacher shares the student's features"
        )
    return ArkasrTeacher(model, allowed=learner.allowed, top_k=learner.top_k)


def _checkpoint_folder(path: Path, flag: str) -> Path:
    if not (path / "config.json").is_file():
        raise InputError(f"{flag} {path}: no config.json there; give the folder of a checkpoint")
    return path
