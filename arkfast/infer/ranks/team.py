"""Ranks that share a store: who works on which chunk, who is alive, and what every one has done.

The store is torchrun's own where torchrun started the ranks. Elsewhere rank 0 holds it, and no rank outlives rank 0 then. Nothing here
needs a GPU or a process group, so a rank that dies takes no other one with it.

A rank that begins a chunk owns it. It beats in the store while it lives; when a beat has not come for ``timeout`` seconds, whoever has
nothing left to do takes the chunks over that the rank began and did not end. A rank that was only slow does them a second time for nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from arkfast.files import json_text
from arkfast.files.json_input import parse_json_object
from arkfast.records import InputError

if TYPE_CHECKING:
    import torch.distributed as dist

PLACE = ("RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher sets besides WORLD_SIZE."""
CONNECT_SECONDS = 300.0
"""How long ranks wait for rank 0 to hold the store."""
BEATS = 10
"""Signs of life in the time after which a rank counts as dead."""


@dataclass
class Tally:
    """What a rank has done in this run."""

    rows: int = 0
    failed: int = 0
    seconds: float = 0.0
    """Of audio."""
    processing_seconds: float = 0.0


def team_of(*, timeout: float, environment: Mapping[str, str] = os.environ) -> Team | None:
    """The ranks that this process is one of, by what its launcher says; None where it is alone.

    Args:
        timeout: seconds without a sign of life after which a rank counts as dead.
        environment: where the launcher says it.

    Raises:
        InputError: WORLD_SIZE without the rest, or something in it that is no number.
    """
    try:
        world = int(environment.get("WORLD_SIZE") or 1)
        if world == 1:
            return None
        absent = [name for name in PLACE if not environment.get(name)]
        if absent:
            raise InputError(f"WORLD_SIZE is {world}, but {', '.join(absent)} is not set; start with torchrun, or unset WORLD_SIZE")
        rank = int(environment["RANK"])
        local = int(environment.get("LOCAL_RANK") or rank)
        local_world = int(environment.get("LOCAL_WORLD_SIZE") or world)
        port = int(environment["MASTER_PORT"])
    except ValueError as error:
        raise InputError(f"a variable of the launcher is no number ({error}); start with torchrun, or unset WORLD_SIZE") from error
    if not 0 <= rank < world:
        raise InputError(f"RANK is {rank}, and WORLD_SIZE {world}; ranks count from 0")
    return Team(
        rank,
        world,
        local=local,
        local_world=local_world,
        address=(environment["MASTER_ADDR"], port),
        hosted=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=environment.get("TORCHELASTIC_RESTART_COUNT") or "0",
        timeout=timeout,
    )


class Team:
    """The ranks of a run, as one of them sees them. A block joins them, and says at its end that this rank does no more.

    Args:
        rank: this rank's number.
        world: how many there are.
        local: this rank's number on its machine.
        local_world: how many there are on its machine.
        address: host and port of the store.
        hosted: whether somebody else holds the store; otherwise rank 0 does.
        attempt: tells a run whose ranks were started anew from the one before, in the same store.
        timeout: seconds without a sign of life after which a rank counts as dead.

    Raises:
        InputError: the store cannot be reached, when the block is entered, or is gone later.

    Attributes:
        tally: what this rank has done; others read it with the next beat.
    """

    def __init__(
        self, rank: int, world: int, *, local: int, local_world: int, address: tuple[str, int], hosted: bool, attempt: str, timeout: float
    ) -> None:
        self.rank, self.world, self.local, self.local_world = rank, world, local, local_world
        self._address, self._hosted, self._prefix, self._timeout = address, hosted, f"arkfast/transcribe/{attempt}", timeout
        self.tally = Tally()
        self._over = threading.Event()
        self._done: set[int] = set()  # chunks that this rank ended, or knows to be ended
        self._heard: dict[int, tuple[bytes, float]] = {}  # of each rank, its last beat and when it was first seen
        self._store: dist.Store
        self._beating: threading.Thread

    @property
    def leads(self) -> bool:
        """Whether this rank reads and writes what there is one of."""
        return self.rank == 0

    def __enter__(self) -> Team:
        with self._reaching():
            self._store = self._connected(holds=self.leads and not self._hosted)
            # A store serves one call of a connection at a time, and a beat must wait for none.
            beats = self._connected(holds=False)
        self._beating = threading.Thread(target=self._beat, args=(beats,), daemon=True, name="arkfast-beats")
        self._beating.start()
        return self

    def _connected(self, *, holds: bool) -> dist.Store:
        import torch.distributed as dist

        host, port = self._address
        timeout = timedelta(seconds=CONNECT_SECONDS)
        store = dist.TCPStore(host, port, is_master=holds, timeout=timeout, wait_for_workers=False, multi_tenant=True)
        return dist.PrefixStore(self._prefix, store)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._beating.join()
        with suppress(RuntimeError):  # whoever held the store has ended before
            self._tell(self._store)
            self._store.set(f"ended/{self.rank}", "1")

    def _beat(self, store: dist.Store) -> None:
        number = 0
        with suppress(RuntimeError):  # the store is gone; whoever uses it next says so
            while True:
                store.set(f"beat/{self.rank}", str(number))
                self._tell(store)
                number += 1
                if self._over.wait(self._timeout / BEATS):
                    return

    def _tell(self, store: dist.Store) -> None:
        store.set(f"tally/{self.rank}", json_text(asdict(self.tally)))

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Name the store where it cannot be reached."""
        try:
            yield
        except RuntimeError as error:  # what PyTorch raises for its stores is one
            host, port = self._address
            who = "torchrun" if self._hosted else "rank 0"
            raise InputError(
                f"the list of what is to be done, which {who} holds at {host}:{port}, cannot be reached; "
                f"what was done is in the journals, and the same command goes on from there ({str(error).splitlines()[0]})"
            ) from error

    def publish(self, name: str, value: str) -> None:
        """Let every rank know something."""
        with self._reaching():
            self._store.set(f"said/{name}", value)

    def told(self, name: str) -> str | None:
        """Wait for what rank 0 publishes; None where it ends without."""
        while True:
            with self._reaching():
                if self._store.check([f"said/{name}"]):
                    return self._store.get(f"said/{name}").decode()
            if not self.lives(0):
                return None
            time.sleep(0.1)

    def lives(self, rank: int) -> bool:
        """Whether a rank has not said that it ends, and has given a sign of life of late."""
        with self._reaching():
            if self._store.check([f"ended/{rank}"]):
                return False
            beat = self._store.get(f"beat/{rank}") if self._store.check([f"beat/{rank}"]) else b""
        now = time.monotonic()
        if rank not in self._heard or self._heard[rank][0] != beat:
            self._heard[rank] = beat, now
        # One that has not come yet may be loading its packages still.
        return now - self._heard[rank][1] < (self._timeout if beat else max(self._timeout, CONNECT_SECONDS))

    def others(self) -> Tally:
        """What the other ranks have done, together; of processing time the longest."""
        total = Tally()
        for rank in range(self.world):
            with self._reaching():
                if rank == self.rank or not self._store.check([f"tally/{rank}"]):
                    continue
                theirs = Tally(**parse_json_object(self._store.get(f"tally/{rank}")))
            total.rows += theirs.rows
            total.failed += theirs.failed
            total.seconds += theirs.seconds
            total.processing_seconds = max(total.processing_seconds, theirs.processing_seconds)
        return total

    def next_chunks(self, count: int) -> Iterator[int]:
        """Chunks that nobody has begun, ascending, each owned by this rank from when it is given.

        Args:
            count: how many chunks there are.
        """
        while True:
            with self._reaching():
                chunk = self._store.add("next", 1) - 1
                if chunk >= count:
                    return
                if not self._own(chunk, ""):
                    continue  # this rank was so slow that another one took it for dead
            yield chunk

    def _own(self, chunk: int, before: str) -> bool:
        """Take a chunk from its owner; '' stands for nobody. Says whether this rank owns it now."""
        return self._store.compare_set(f"owner/{chunk}", before, str(self.rank)) == str(self.rank).encode()

    def end(self, chunk: int) -> None:
        """Say that all results of a chunk are in a journal."""
        self._done.add(chunk)
        with self._reaching():
            self._store.set(f"done/{chunk}", "1")

    def not_ended(self, chunks: Iterable[int]) -> list[int]:
        """Those of some chunks that no rank has ended."""
        with self._reaching():
            self._done.update(chunk for chunk in chunks if chunk not in self._done and self._store.check([f"done/{chunk}"]))
        return [chunk for chunk in chunks if chunk not in self._done]

    def take_over(self, chunks: Iterable[int]) -> list[int]:
        """Own those of some chunks whose owner is dead; ascending.

        A chunk that was handed out and has no owner belongs to a rank that died in between. Nothing says which one that was, so it is taken
        over when any rank is dead.
        """
        alive = {rank: rank == self.rank or self.lives(rank) for rank in range(self.world)}
        taken = []
        for chunk in chunks:
            with self._reaching():
                owner = self._store.get(f"owner/{chunk}").decode() if self._store.check([f"owner/{chunk}"]) else ""
                if not owner and all(alive.values()):
                    continue
                if (not owner or not alive[int(owner)]) and self._own(chunk, owner):
                    taken.append(chunk)
        return sorted(taken)
