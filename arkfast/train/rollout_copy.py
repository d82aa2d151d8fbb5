"""The decoder of a sharded student once more, whole, for its rollouts.

Sharded weights are gathered into memory that goes again after its use, so no captured decode step can read them. This copy stays where it
is, in the compute precision, and takes the new weights once a step, layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from arkfast.distill.sequence import encoded
from arkfast.engine import Engine, RolloutOptions
from arkfast.engine.ahead import Ahead
from arkfast.engine.memory import free_memory
from arkfast.models.family import Audio, ShardUnits, SpeechModel
from arkfast.records import AllowedTokens, Batch, Rollout
from arkfast.train.student import ShardedStudent, Student

if TYPE_CHECKING:
    from typing_extensions import Unpack

SHARE = 0.25
"""The most of the free memory that a copy may take. The rest is for activations, the cache of the rows that are decoded and the teacher."""
STATE = 12
"""Bytes of each trained weight of a rank that are not taken yet when the copy is made: two moments and a gradient in float32."""
Choice = Literal["auto", "on", "off"]


class RolloutCopy:
    """A model of plain tensors that decodes and does not encode: its encoder has no weights.

    Args:
        student: whose weights are copied. Frozen ones do not change and are not sharded, so that the copy shares them.
        units: the parts of the student's model.
        shell: the same model without weights, its buffers on the device.
        dtype, device: of the copy.

    Attributes:
        model: what a decoding engine takes.
    """

    def __init__(self, student: ShardedStudent, units: ShardUnits, shell: SpeechModel, *, dtype: torch.dtype, device: torch.device) -> None:
        self.model, self._student = shell, student
        targets = _targets(student.model, units, shell)
        given: dict[nn.Parameter, nn.Parameter] = {}
        for own, trained in targets.items():
            given[own] = trained
            if trained.requires_grad:
                given[own] = nn.Parameter(torch.empty(trained.shape, dtype=dtype, device=device), requires_grad=False)
        copied = {trained: given[own] for own, trained in targets.items() if trained.requires_grad}
        for owner in shell.modules():
            for key, weight in owner._parameters.items():
                if weight in given:
                    owner._parameters[key] = given[weight]
        self._layers = {layer: _places(layer, copied) for layer in units.layers}
        inside = {module for layer in units.layers for module in layer.modules()}
        self._rest = [place for place in _places(student.model, copied) if place[0] not in inside]

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the student's weights as they are now. Every rank calls it, inside ``Student.inside``."""
        _copy(self._rest)
        for layer in self._student.each_whole(list(self._layers)):
            _copy(self._layers[layer])


_Place = tuple[nn.Module, str, nn.Parameter]
"""Where a weight of the student is found, by its module and its name there, and what it is copied to."""


def _copy(places: Sequence[_Place]) -> None:
    for module, key, target in places:
        weight = module._parameters[key]
        assert weight is not None
        target.copy_(weight)


def _places(part: nn.Module | SpeechModel, copied: dict[nn.Parameter, nn.Parameter]) -> list[_Place]:
    """Where the weights of a part of the student are found; a tied one once."""
    found: dict[nn.Parameter, _Place] = {}
    for module in part.modules():
        for key, weight in module._parameters.items():
            if weight in copied:
                found.setdefault(weight, (module, key, copied[weight]))
    return list(found.values())


def _targets(model: SpeechModel, units: ShardUnits, shell: SpeechModel) -> dict[nn.Parameter, nn.Parameter]:
    """The shell's parameters outside the encoder, each with the student's of its name."""
    encoder = {parameter for unit in units.encoder for parameter in unit.parameters()}
    weights = dict(model.named_parameters())
    return {own: weights[name] for name, own in shell.named_parameters() if weights[name] not in encoder}


def copy_bytes(model: SpeechModel, units: ShardUnits, dtype: torch.dtype) -> int:
    """Bytes that a copy takes."""
    encoder = {parameter for unit in units.encoder for parameter in unit.parameters()}
    return sum(p.numel() for p in model.parameters() if p.requires_grad and p not in encoder) * dtype.itemsize


def decide(choice: Choice, *, copy: int, state: int, free: int | None) -> tuple[bool, str]:
    """Whether a rank has room for a copy of its own, and why.

    Args:
        choice: of ``--rollout_copy``.
        copy: bytes that it takes.
        state: bytes that training will take besides before its first step is done.
        free: bytes that are free now; None on a CPU, where a copy has no captured step to serve.
    """
    if choice != "auto":
        return choice == "on", f"--rollout_copy {choice} was given"
    if free is None:
        return False, "a CPU captures no steps"
    left = max(0, free - state)
    return copy <= SHARE * left, f"it takes {_gb(copy)} of {_gb(left)} that are left beside the optimizer's state, and may take {SHARE:.0%}"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def decision(
    choice: Choice, student: ShardedStudent, units: ShardUnits, dtype: torch.dtype, device: torch.device, refused: Callable[[bool], int]
) -> tuple[bool, str]:
    """Whether every rank keeps a copy, which they all do or none does, and the sentence about it for the log.

    Args:
        choice: of ``--rollout_copy``.
        student, units: what would be copied.
        dtype, device: of the copy.
        refused: on how many ranks its argument is true; every rank calls it.
    """
    state = STATE * sum(p.numel() // max(1, student.shards) for _, p in student.parameters if p.requires_grad)
    kept, why = decide(choice, copy=copy_bytes(student.model, units, dtype), state=state, free=free_memory(device))
    if (without := refused(not kept)) and kept:
        kept, why = False, f"{without} of the processes have no room for it"
    if kept:
        return True, f"rollouts decode with a copy of the decoder of their own, refreshed once a step ({why})"
    return False, f"rollouts decode with the gathered weights, and without CUDA graphs; no copy is kept ({why})"


class WholeEngine:
    """The decoding engine of a student whose weights are whole while it decodes: a ``Decodes``. It decodes ahead of the teacher's work.

    Args:
        engine: an ``Engine`` of the student's model, or of ``copy``'s.
        student: whose tokens are wanted.
        copy: what ``engine`` decodes with; None: the student's own weights.
        changes: how often the student's weights may have changed so far, the same on every rank.
    """

    def __init__(self, engine: Engine, student: Student, copy: RolloutCopy | None, changes: Callable[[], int]) -> None:
        self._engine, self._student, self._copy, self._changes = engine, student, copy, changes
        self._copied_at = -1
        self._ahead = Ahead(engine.stop_ids.device)
        self.blocked: torch.Tensor = engine.blocked
        self.allowed: AllowedTokens = engine.allowed
        self.stop_ids: torch.Tensor = engine.stop_ids

    def rollout(self, batch: Batch, *, audio: Audio | None = None, **options: Unpack[RolloutOptions]) -> Rollout:
        """See ``Engine.rollout``. Every rank calls it, inside ``Student.inside``; once the weights are there no collective runs in it, so
        that ranks may decode for as long as their own rows take."""

        def decoded(heard: Audio | None) -> Rollout:
            with self._ahead.first():
                return self._engine.rollout(batch, audio=heard, **options)

        if self._copy is None:
            with self._student.whole():
                return decoded(audio)
        if self._copied_at != (changes := self._changes()):
            self._copy.refresh()
            self._copied_at = changes
        if audio is None and batch.mel is not None:
            with torch.no_grad(), self._student.whole():
                audio = encoded(self._student.model, batch)  # the copy has no encoder
        return decoded(audio)
