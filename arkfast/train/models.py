"""The models of a run: the student as it is trained and the teacher as it is asked.

They come to be in two steps, because a rank whose checkpoint cannot be loaded must be able to say so while no other rank waits for it in a
collective: ``load_models`` reads checkpoints and meets nobody; a ``Learner`` is made of what every rank has loaded, and shards it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from arkfast.audio.reference import HOP_LENGTH, SAMPLING_RATE
from arkfast.data.tasks import Task, find_task
from arkfast.distill import CTCHead
from arkfast.distill.teachers import Teacher, TeacherRequest, load_teacher
from arkfast.engine import Decodes, Engine
from arkfast.models.family import AnyFamily, Processor, SpeechModel, check_head, check_positions, find_family
from arkfast.models.packed import pack, pays
from arkfast.records import Batch, InputError, Interface, Utterance
from arkfast.train.checkpoints.export import whole_weights
from arkfast.train.config import TrainConfig
from arkfast.train.lora import add_adapters, merged
from arkfast.train.objective import reports_of
from arkfast.train.optim import MasterAdamW
from arkfast.train.parallel import Agreed, Parallel
from arkfast.train.rollout_copy import RolloutCopy, WholeEngine, decision
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


class LoadedStudent:
    """The student as its checkpoint gives it, before it is sharded: with processor, prompt, and the parts that are not trained.

    Args:
        config: which model, which parts.
        parallel: the processes; nothing of it but the device and their number is asked.
        sharded: whether the model is to be cut into shards; it then has no weights yet.

    Raises:
        InputError: the checkpoint cannot be used, or the model cannot do the run's task.
    """

    def __init__(self, config: TrainConfig, parallel: Parallel, *, sharded: bool) -> None:
        self.config, self.sharded = config, sharded
        device, compute = parallel.device, compute_dtype(config, parallel.device)
        folder, attention = _checkpoint_folder(config.student_model, "--student_model"), config.student_attn_implementation
        self.family: AnyFamily = find_family(folder)
        self.processor: Processor = self.family.processor(folder)
        self.stored: StoredModel | None = None
        self.model: SpeechModel
        if sharded:
            self.stored = StoredModel(self.family, folder, attention)
            self.model, self.export_dtype = self.stored.model, self.stored.dtype
        else:
            model: SpeechModel = self.family.load(folder, dtype="auto", attn_implementation=attention)
            self.export_dtype = model.dtype
            model.float()
            model.to(device)
            self.model = model
        check_head(self.model, where=f"--student_model {folder}")
        if config.packed_decoder == "on" or (config.packed_decoder == "auto" and pays(device, compute)):
            pack(self.model)
        self.task: Task = find_task(config.task)
        self.interface: Interface = self.family.interface(self.processor.tokenizer, self.model, where=f"--student_model {folder}")
        self.prompt, self.allowed = self.interface.prompt(config.task), self.interface.allowed(config.task)
        self.top_k = min(config.opd_top_k, self.allowed.count)
        if self.task.hears and self.interface.n_mels is None:
            raise InputError(f"--student_model {folder}: the model hears nothing, and task {config.task} needs that; give another")
        self.n_mels = self.interface.n_mels if self.task.hears else None
        """Mel filters of the features that are made; None: the task hears nothing."""
        self.positions = check_positions(
            self.model,
            self.prompt,
            frames=0 if self.n_mels is None else round(config.max_audio_seconds * SAMPLING_RATE / HOP_LENGTH),
            new_tokens=config.asr_opd_max_new_tokens,
            asked=f"--max_audio_seconds {config.max_audio_seconds:g} and --asr_opd_max_new_tokens {config.asr_opd_max_new_tokens}",
        )
        self.ctc_head = self._ctc_head(device)
        self.frozen = self._freeze(device, compute)
        """Weights that are not trained, by name, as the checkpoint has them."""
        self.names = {name for name, _ in self.model.named_parameters()}
        """Of the model's parameters, adapters among them; what else trains is never exported."""

    def _ctc_head(self, device: torch.device) -> CTCHead | None:
        if not self.config.ctc_weight:
            return None
        if self.n_mels is None:
            raise InputError(f"--ctc_weight: a CTC term aligns audio, and task {self.config.task} hears nothing; leave it at 0")
        if self.config.deterministic and device.type == "cuda":
            raise InputError(
                "--ctc_weight: PyTorch's CTC loss has no deterministic gradient on a GPU; leave it at 0, or --deterministic out"
            )
        blank = self.interface.tokenizer.pad_token_id
        if blank is None:
            raise InputError(f"--student_model {self.config.student_model}: its tokenizer has no padding id, which is CTC's blank")
        size = self.model.config
        return CTCHead(size.hidden_size, size.vocab_size, int(blank), seed=self.config.seed).to(device)

    def _freeze(self, device: torch.device, compute: torch.dtype) -> dict[str, torch.Tensor]:
        """Take out of training what is not trained; nothing that is frozen needs more than the compute precision."""
        config, model = self.config, self.model
        if config.lora_rank:
            names = [name for name, _ in model.named_parameters()]
            add_adapters(model, rank=config.lora_rank, alpha=config.lora_alpha, seed=config.seed, device=device)
        else:
            names = freeze(model, self.family, config.freeze)
        if self.stored is not None:
            return {name: self.stored.read(name).to(self.stored.dtype) for name in names}
        parameters = dict(model.named_parameters())
        frozen = {name: parameters[name].detach().cpu().clone() for name in names}
        for name in names:
            parameters[name].data = parameters[name].data.to(compute)
        return frozen

    def shell(self, device: torch.device) -> SpeechModel:
        """The model once more, adapters and all, without weights; its buffers are on the device."""
        config = self.config
        shell: SpeechModel = self.family.shell(config.student_model, attn_implementation=config.student_attn_implementation)
        if config.lora_rank:
            add_adapters(shell, rank=config.lora_rank, alpha=config.lora_alpha, seed=config.seed, device=torch.device("meta"))
        self.family.fill_buffers(shell, device)
        return shell

    def placed(self, parallel: Parallel) -> Student:
        """The student where it trains: every rank calls it, since sharding is a collective."""
        config, device = self.config, parallel.device
        units, stored, compute = self.family.shard_units(self.model), self.stored, compute_dtype(config, device)
        if stored is None:
            return Student(self.model, units, self.ctc_head, checkpointing=config.activation_checkpointing)
        parallel.open()
        stored.fill_buffers(device)
        return ShardedStudent(
            self.model,
            units,
            self.ctc_head,
            mesh=parallel.mesh(config.shard_group_size),
            compute_dtype=compute,
            fill=lambda unit: stored.fill(unit, device, compute),
            free_early=config.sharding == "full",
            checkpointing=config.activation_checkpointing,
        )


class Loaded(NamedTuple):
    """What a rank has loaded."""

    student: LoadedStudent
    teacher: Teacher | None
    """None in a stage that asks none."""


def load_models(config: TrainConfig, parallel: Parallel, *, sharded: bool) -> Loaded:
    """Load a run's models on this rank, the teacher whole.

    Raises:
        InputError: a checkpoint cannot be used, or the teacher does not fit the student.
    """
    student = LoadedStudent(config, parallel, sharded=sharded)
    if sharded:
        parallel.groups(config.shard_group_size)
    if config.stage == "sft":
        return Loaded(student, None)
    assert config.teacher_model is not None
    request = TeacherRequest(
        model=_checkpoint_folder(config.teacher_model, "--teacher_model"),
        student=student.model,
        interface=student.interface,
        task=config.task,
        allowed=student.allowed,
        top_k=student.top_k,
        device=parallel.device,
        dtype=compute_dtype(config, parallel.device),
        attn_implementation=config.teacher_attn_implementation,
        **reports_of(config),
        positions=student.positions,
        prompt=config.teacher_prompt,
        full_attention=config.teacher_full_attention,
        unsupported_language=config.unsupported_language,
    )
    return Loaded(student, load_teacher(config.teacher_backend, request))


class Learner:
    """The student where it trains, with its engine and its optimizer; every rank makes one.

    Args:
        loaded: what every rank has loaded; before all have, no collective may begin.
        parallel: the processes.
        total: adds a step's numbers up over ranks.
    """

    def __init__(self, loaded: Agreed[Loaded], parallel: Parallel, total: Callable[[torch.Tensor], torch.Tensor]) -> None:
        student = loaded.value.student
        config = student.config
        self.family, self.model, self.processor, self.interface = student.family, student.model, student.processor, student.interface
        self.task, self.prompt, self.allowed, self.top_k = student.task, student.prompt, student.allowed, student.top_k
        self.n_mels, self.ctc_head, self.sharded = student.n_mels, student.ctc_head, student.sharded
        self._export_dtype, self._frozen, self._names = student.export_dtype, student.frozen, student.names
        self.folder = config.student_model
        """The student's checkpoint, here."""
        self._lora_scale = config.lora_alpha / config.lora_rank if config.lora_rank else 0.0
        self.student = student.placed(parallel)
        # The engine before the optimizer, which gives whole parameters their compute precision: it looks at shapes only.
        topk = self.top_k if config.stage == "opd" else 0
        self.notes: list[str] = []
        """What a run's log says of how the student is placed."""
        copy = self._rollout_copy(student, parallel)
        engine = Engine(self.model if copy is None else copy.model, allowed=self.allowed, topk=topk)
        self.engine: Decodes = WholeEngine(engine, self.student, copy, lambda: self.optimizer.changes)
        self.optimizer = MasterAdamW(self.student.parameters, config, compute_dtype(config, parallel.device), total=total)

    def _rollout_copy(self, loaded: LoadedStudent, parallel: Parallel) -> RolloutCopy | None:
        """A copy of the sharded student for rollouts, where they are made and memory allows it."""
        config, device = loaded.config, parallel.device
        if not isinstance(self.student, ShardedStudent) or config.stage != "opd":
            return None
        compute, units = compute_dtype(config, device), self.family.shard_units(self.model)
        kept, said = decision(
            config.rollout_copy,
            self.student,
            units,
            compute,
            device,
            lambda without: int(parallel.total(torch.tensor(float(without), device=device))),
        )
        self.notes.append(said)
        return RolloutCopy(self.student, units, loaded.shell(device), dtype=compute, device=device) if kept else None

    def whole_weights(self, weights: dict[str, torch.Tensor], *, keep: bool) -> dict[str, torch.Tensor]:
        """The model's weights as they are exported: those of the optimizer's that belong to it, whole, and the frozen ones.

        Args:
            weights: the optimizer's; every rank must call with its own.
            keep: False on ranks that only take part.
        """
        own = {name: weight for name, weight in weights.items() if name in self._names}
        if not self._lora_scale:
            return whole_weights(own, self._frozen, self._export_dtype, keep=keep)
        whole = merged(whole_weights(own, self._frozen, torch.float32, keep=keep), self._lora_scale)
        return {name: weight.to(self._export_dtype) for name, weight in whole.items()}

    def idle_batch(self) -> Batch:
        """An utterance of nothing with an empty answer, for a rank that has nothing to do in a round: eight frames of silence where the
        task hears."""
        frames = 0 if self.n_mels is None else 8
        ids = torch.tensor([self.prompt.ids(frames, Utterance(id="idle", audio=None, text=""))])
        one = torch.ones(1, dtype=torch.int64)
        return Batch(
            ids=("idle",),
            keys=torch.zeros(1, dtype=torch.int64),
            mel=None if self.n_mels is None else torch.zeros(1, self.n_mels, frames),
            mel_lens=None if self.n_mels is None else one * frames,
            mel_frames=None if self.n_mels is None else (frames,),
            input_ids=ids,
            prompt_lens=one * ids.shape[1],
            target_ids=one[None] * self.allowed.stop_ids[0],
            target_lens=one,
        )


def _checkpoint_folder(path: Path, flag: str) -> Path:
    if not (path / "config.json").is_file():
        raise InputError(f"{flag} {path}: no config.json there; give the folder of a checkpoint")
    return path
