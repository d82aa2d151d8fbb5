"""This process's place among the processes of a run, and the few things that they must agree on.

It reads torchrun's environment, makes the process groups, and turns an error of one rank into every rank's.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.rendezvous import rendezvous

from arkfast.device import be_deterministic, use_device
from arkfast.records import InputError

PLACE = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets for every process besides WORLD_SIZE."""


T = TypeVar("T")
_FAILED = "failed"
HEAD_START_OF_RANK_0 = 5.0


class Agreed(Generic[T]):
    """What every rank has got ready: only ``Parallel.agree`` makes one, after all ranks have succeeded."""

    def __init__(self, value: T) -> None:
        self.value = value


def this_start(store: dist.Store, rank: int, world: int) -> str:
    """A name that the processes of this start share and no earlier start of the run had.

    Torchrun's own store outlives a restart with all that the dead processes left in it, their addresses first of all; its count of restarts
    is each machine's own. So rank 0 makes up a name, and hands it to whoever shows it a sign that nobody showed before.
    """
    if rank:
        sign = uuid.uuid4().hex
        store.set(f"arkfast/sign/{rank}", sign)
        name = store.get(f"arkfast/name/{sign}").decode()
        store.set(f"{name}/here/{rank}", "")
        return name
    name = f"arkfast/start/{uuid.uuid4().hex}"
    waiting = set(range(1, world))
    while waiting:
        for other in sorted(waiting):
            if store.check([f"{name}/here/{other}"]):
                waiting.discard(other)
            elif store.check([f"arkfast/sign/{other}"]):
                # It may be the sign of a process that is dead; then its name is read by none.
                store.set(f"arkfast/name/{store.get(f'arkfast/sign/{other}').decode()}", name)
        time.sleep(0.02)
    return name


def let_rank_0_end_first(environment: Mapping[str, str] = os.environ) -> None:
    """Wait, on a rank that leaves it to rank 0 to say why the run ends, until torchrun stops this process.

    Torchrun names the process that it saw end first as the cause. A torchrun on another machine sees nothing of rank 0; there this returns
    after ``HEAD_START_OF_RANK_0`` seconds.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        time.sleep(HEAD_START_OF_RANK_0)


def _is_set(store: dist.Store, key: str) -> bool:
    try:
        return store.check([key])
    except RuntimeError:  # the store went with rank 0
        return False


class Parallel:
    """The processes of a run. One process has no group, and everything here is then free.

    Args:
        device: cuda, cpu or auto.
        timeout: seconds after which a collective that some rank never joins is an error.
        deterministic: have the process compute the same bits in every run (``arkfast.device.be_deterministic``).
        environment: where torchrun says which process this is.

    Raises:
        InputError: WORLD_SIZE without the rest of torchrun's variables, a GPU that is not there, more processes on a machine than it has
            GPUs, or an environment in which ``deterministic`` cannot hold.
    """

    def __init__(
        self,
        device: str = "auto",
        *,
        timeout: float = 1800.0,
        deterministic: bool = False,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self.world = int(environment.get("WORLD_SIZE", "1"))
        if self.world > 1 and (absent := [name for name in PLACE if name not in environment]):
            raise InputError(
                f"WORLD_SIZE is {self.world}, but {', '.join(absent)} is not set; start processes with torchrun, or unset WORLD_SIZE"
            )
        self.rank = int(environment.get("RANK", "0")) if self.world > 1 else 0
        self.is_first_here = self.world == 1 or environment["LOCAL_RANK"] == "0"
        """Whether this is the first process of its machine, which fetches what all of them need."""
        self.restarts = int(environment.get("TORCHELASTIC_RESTART_COUNT", "0"))
        """How often torchrun has started this run's processes anew."""
        wanted = device
        if self.world > 1 and device in ("auto", "cuda") and (there := torch.cuda.device_count()):
            local = int(environment["LOCAL_RANK"])
            if local >= there:
                raise InputError(f"--nproc_per_node: process {local + 1} on this machine has no GPU of its own, there are {there}")
            wanted = f"cuda:{local}"
        if deterministic:
            be_deterministic()
        self.device = use_device(wanted, environment=environment)
        self._timeout = timedelta(seconds=timeout)
        self._opened = False
        self._store: dist.Store | None = None
        self._objects: dist.ProcessGroup | None = None
        self.checkpoint_group: dist.ProcessGroup | None = None
        """A gloo group of its own for checkpoints, so that a save in the background never meets the step's collectives; None alone."""
        if self.world > 1:
            self.open()

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints, logs and claims folders."""
        return self.rank == 0

    @property
    def backend(self) -> str:
        """What collectives run on: NCCL for tensors on GPUs, gloo for all else."""
        return "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"

    def open(self) -> None:
        """Make the process groups. Sharding calls this for a single process too, which then is a group of one."""
        if self._opened:
            return
        if self.world == 1:
            store: dist.Store = dist.HashStore()
        else:
            shared, _, _ = next(rendezvous("env://", timeout=self._timeout))
            store = dist.PrefixStore(this_start(shared, self.rank, self.world), shared)
        self._store = store
        dist.init_process_group(self.backend, store=store, rank=self.rank, world_size=self.world, timeout=self._timeout)
        self._objects = dist.new_group(backend="gloo", timeout=self._timeout)
        self.checkpoint_group = dist.new_group(backend="gloo", timeout=self._timeout)
        self._opened = True

    def close(self) -> None:
        """Leave the groups once every rank has come here; ranks that leave early would make the others' last collectives fail."""
        if self._opened:
            dist.barrier(group=self._objects)
            dist.destroy_process_group()
            self._opened, self._objects, self.checkpoint_group = False, None, None

    def groups(self, shard_group_size: int = 0) -> tuple[int, int]:
        """(groups that each hold a whole copy, processes of a group); a size of 0 is one group of all.

        Raises:
            InputError: the world is no multiple of the size.
        """
        size = shard_group_size or self.world
        if self.world % size:
            raise InputError(f"--shard_group_size {size}: {self.world} processes are no multiple of it; give a divisor, or 0 for one group")
        return self.world // size, size

    def mesh(self, shard_group_size: int = 0) -> DeviceMesh:
        """The mesh to shard over, of ``groups``."""
        copies, size = self.groups(shard_group_size)
        if copies == 1:
            return init_device_mesh(self.device.type, (size,), mesh_dim_names=("shard",))
        return init_device_mesh(self.device.type, (copies, size), mesh_dim_names=("replicate", "shard"))

    def total(self, packed: torch.Tensor) -> torch.Tensor:
        """``packed`` added up over all ranks, in place: one all-reduce."""
        if self.world > 1:
            dist.all_reduce(packed)
        return packed

    def gather(self, value: T) -> list[T]:
        """``value`` of every rank, in order. For small things outside the step."""
        if self.world == 1:
            return [value]
        values = [value] * self.world
        dist.all_gather_object(values, value, group=self._objects)
        return values

    def broadcast(self, value: T) -> T:
        """Rank 0's ``value`` on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._objects)
        return box[0]

    def barrier(self) -> None:
        """Wait for every rank, outside the step."""
        if self.world > 1:
            dist.barrier(group=self._objects)

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """A block whose input errors concern every rank: when one raises, all stop, and only rank 0 says why.

        Raises:
            InputError: on rank 0, the first rank's message.
            SystemExit: on the others, with the exit code of wrong input.
        """
        error: InputError | None = None
        try:
            yield
        except InputError as raised:
            if self.world == 1:
                raise
            error = raised
        found = [(rank, text) for rank, text in enumerate(self.gather(error and str(error))) if text is not None]
        if not found:
            return
        if not self.is_first:
            let_rank_0_end_first()
            raise SystemExit(2)
        rank, text = found[0]
        raise InputError(text if rank == 0 else f"{text} (seen by rank {rank} of {self.world})") from error

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """A block in which rank 0 works with files that the others do not: where it ends with an input error, the others, whose next
        collective then breaks, end as well, and leave it to rank 0 to say why.

        Raises:
            SystemExit: on the other ranks, with the exit code of wrong input.
        """
        try:
            yield
        except InputError:
            if self._store is not None and self.is_first:
                self._store.set(_FAILED, "")
            raise
        except RuntimeError as error:
            if self._store is not None and not self.is_first and _is_set(self._store, _FAILED):
                let_rank_0_end_first()
                raise SystemExit(2) from error
            raise

    def agree(self, work: Callable[[], T]) -> Agreed[T]:
        """Do ``work`` on every rank, in which no collective may run; what comes of it, once all ranks have succeeded.

        Raises:
            InputError, SystemExit: as ``agreeing`` does, where the work of any rank raises an ``InputError``.
        """
        with self.agreeing():
            value = work()
        return Agreed(value)
