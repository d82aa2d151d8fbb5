"""The student as the step uses it: whole in one process, or cut into shards that come together when they are needed.

A step runs inside one forward of the sharded root (``inside``), because the token table is read in three places of a step, before and
after the decoder: all of them must see the same whole tensor, whose gradient is reduced once, when the whole backward is done.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, UnshardHandle, fully_shard

from arkfast.models.family import AnyFamily, ShardUnits, SpeechModel
from arkfast.records import InputError

Out = TypeVar("Out")


def freeze(model: SpeechModel, family: AnyFamily, parts: Sequence[str]) -> list[str]:
    """Take parts of the model out of training, and return their parameters' names.

    Args:
        model: whole, or without weights yet.
        family: the model's, which says what its parts are.
        parts: keys of ``Family.parts``.

    Raises:
        InputError: a part that the model does not have, or nothing would be left to train.
    """
    for part in parts:
        if part not in family.parts:
            raise InputError(f"--freeze {part}: the model has no such part; it has {', '.join(family.parts)}")
    prefixes = tuple(prefix for part in parts for prefix in family.parts[part])
    frozen = [name for name, _ in model.named_parameters() if prefixes and name.startswith(prefixes)]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"--freeze {','.join(parts)}: nothing is left to train; freeze fewer parts")
    return frozen


class Student:
    """The model of one process.

    Args:
        model: what is trained.
        units: its parts.
        extra: a module that trains along and is never exported, such as a CTC head.
        checkpointing: recompute each layer's activations in the backward pass instead of keeping them.
    """

    mesh: DeviceMesh | None = None
    """What the parameters are sharded over; None when they are whole."""

    def __init__(self, model: SpeechModel, units: ShardUnits, extra: nn.Module | None = None, *, checkpointing: bool = False) -> None:
        self.model, self.extra = model, extra
        self._recomputed = units.recomputed if checkpointing else ()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # Taken now: while a sharded module is gathered it shows other parameters than the ones that are optimised.
        more = [(f"ctc_head.{name}", p) for name, p in extra.named_parameters()] if extra is not None else []
        self.parameters = [*model.named_parameters(), *more]
        """(name, parameter) pairs; sharded ones are DTensors."""

    def inside(self, work: Callable[[], Out], *, last: bool = True) -> Out:
        """Do a micro-batch's ``work`` where the parameters may be read; ``last`` ends the accumulation window."""
        self._recompute(True)
        try:
            return work()
        finally:
            self._recompute(False)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Every parameter is whole in here, so that ranks may call the model differently often: decoding and evaluation."""
        self._recompute(False)
        yield
        self._recompute(True)

    def _recompute(self, on: bool) -> None:
        # Transformers' layers recompute in training mode only; without dropout, that is all that the mode does.
        for layer in self._recomputed:
            layer.training = on


class _Root(nn.Module):
    """The module that FSDP2 treats as the root. Its forward runs the whole step."""

    def __init__(self, model: Any, extra: nn.Module | None) -> None:
        super().__init__()
        self.model, self.extra = model, extra

    def forward(self, work: Callable[[], Out]) -> Out:
        return work()


class ShardedStudent(Student):
    """The model over several processes: float32 shards, gathered in the compute precision.

    What is in none of its units (token table, last norm, head) is the root's, with ``extra``: one unit, because table and head are one
    tensor. Frozen parameters are not sharded: they are never gathered and have no state.

    Args:
        model, units, extra, checkpointing: as for ``Student``; the model's trained parameters float32, or none yet.
        mesh: from ``Parallel.mesh``.
        fill: called with each unit before it is sharded, to give it its weights.
        compute_dtype: what forward and backward run in; gradients are reduced in float32.
        free_early: free each unit after its use and gather it again for the backward pass, and reduce gradients after every micro-batch
            (least memory); otherwise everything is gathered once a step and reduced once (least traffic).
    """

    def __init__(
        self,
        model: SpeechModel,
        units: ShardUnits,
        extra: nn.Module | None = None,
        *,
        mesh: DeviceMesh,
        compute_dtype: torch.dtype,
        fill: Callable[[nn.Module], None],
        free_early: bool = False,
        checkpointing: bool = False,
    ) -> None:
        self.mesh, self._free_early = mesh, free_early
        self.shards = mesh.size(-1)
        """Into how many shards each trained parameter is cut."""
        policy = MixedPrecisionPolicy(
            param_dtype=None if compute_dtype == torch.float32 else compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        self._units: list[FSDPModule] = []
        root = _Root(model, extra)
        for unit in (*units.encoder, *units.layers, root):
            fill(unit)
            frozen = {parameter for parameter in unit.parameters() if not parameter.requires_grad}
            if len(frozen) < len(list(unit.parameters())):
                sharded = fully_shard(unit, mesh=mesh, mp_policy=policy, ignored_params=frozen, reshard_after_forward=free_early)
                self._units.append(sharded)
        self._root: Any = root  # FSDP2 has made it a class of both kinds
        sharded_root = self._units.pop()  # the root is gathered by its own forward and freed after the backward pass
        for part in (*self._units, sharded_root):
            # Gradients are sums over positions; the optimizer divides them once by the count of all ranks.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo cannot scale while it reduces
        sharded_root.set_reshard_after_forward(False, recurse=False)
        # The adapter's result is a view; nothing writes into it.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        self._order_backward(units)
        super().__init__(model, units, extra, checkpointing=checkpointing)

    @staticmethod
    def _order_backward(units: ShardUnits) -> None:
        """Say which unit each decoder layer's backward fetches ahead.

        FSDP2 would take the unit that ran before it, and what ran before the first layer is the last layer of a decoding step.
        """
        layers = [layer for layer in units.layers if isinstance(layer, FSDPModule)]
        before = [unit for unit in units.encoder[-1:] if isinstance(unit, FSDPModule)]
        first = (before or layers)[:1] if layers else []
        for ahead, layer in zip([*first, *layers], layers, strict=False):
            layer.set_modules_to_backward_prefetch([ahead])

    def inside(self, work: Callable[[], Out], *, last: bool = True) -> Out:
        """See ``Student.inside``. Every rank must come here equally often; ``work`` must build the same graph on each."""
        root = self._root
        root.set_requires_gradient_sync(last or self._free_early)
        root.set_reshard_after_backward(last or self._free_early)

        def gathered() -> Out:
            if not self._free_early:
                self._gather()
            return Student.inside(self, work, last=last)

        return root(gathered)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """See ``Student.whole``: gathers what is not yet whole, and with ``free_early`` frees it at the end."""
        for unit in self._units:
            unit.set_reshard_after_forward(False, recurse=False)
        self._gather()
        with super().whole():
            yield
        if self._free_early:
            for unit in self._units:
                unit.set_reshard_after_forward(True, recurse=False)
                unit.reshard()

    def _gather(self) -> None:
        """Gather every unit, the next one under way while one arrives: all at once would hold each tensor twice."""
        under_way: list[UnshardHandle] = []
        for unit in self._units:
            handle = unit.unshard(async_op=True)
            assert handle is not None
            under_way.append(handle)
            if len(under_way) > 1:
                under_way.pop(0).wait()
        for handle in under_way:
            handle.wait()

    def each_whole(self, layers: Sequence[nn.Module]) -> Iterator[nn.Module]:
        """Each of ``layers`` in turn while its weights are whole; with ``free_early`` they go again, so that two at most are there at once.

        Every rank goes through it to its end, inside ``inside``, where what belongs to no layer is whole already.
        """
        waiting: list[tuple[nn.Module, UnshardHandle | None]] = []
        for layer in layers:
            waiting.append((layer, layer.unshard(async_op=True) if isinstance(layer, FSDPModule) else None))
            if len(waiting) > 1:
                yield from self._arrived(*waiting.pop(0))
        for last in waiting:
            yield from self._arrived(*last)

    def _arrived(self, layer: nn.Module, under_way: UnshardHandle | None) -> Iterator[nn.Module]:
        if under_way is not None:
            under_way.wait()
        yield layer
        if self._free_early and isinstance(layer, FSDPModule):
            layer.reshard()
