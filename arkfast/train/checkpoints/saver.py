"""Saving a run: checkpoints that count only when complete, in the background where that is asked for, and models.

It decides which rank writes what and in which order. What the files hold stands in ``tensors`` and ``export``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch.distributed.checkpoint.api import CheckpointException

from arkfast.files import NewFolder
from arkfast.train.checkpoints.run_folder import RunFolder, TrainerState, checkpoints, load_state, write_best
from arkfast.train.checkpoints.tensors import shard_sums, write_alone, write_shards
from arkfast.train.parallel import Parallel

Write = Callable[[Path], None]


class Saver:
    """Writes the checkpoints of a run, one at a time.

    Args:
        folder: the run's folder, on rank 0; None on the others.
        parallel: the processes.
        sharded: whether tensors are DTensors.
        background: return from ``save`` as soon as the state is copied to main memory.
    """

    def __init__(self, folder: RunFolder | None, parallel: Parallel, *, sharded: bool, background: bool) -> None:
        assert (folder is not None) == parallel.is_first
        self._folder, self._parallel, self._sharded = folder, parallel, sharded
        self._thread = ThreadPoolExecutor(1) if background else None
        self._pending: Future[object] | None = None

    def save(self, state: TrainerState, export: Write, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write ``checkpoints/global_step_N``; every rank calls it.

        Args:
            state: where the run stands.
            export: writes the model into a folder; called on rank 0.
            tensors: the optimizer's.

        Raises:
            InputError: this save, or the one before it in the background, could not be written. What stood before stays, and nothing of
                the new one.
        """
        self.wait()
        new = None if self._folder is None else self._folder.begin(state.step)
        written: Future[object] | None = None
        kept: Mapping[str, torch.Tensor] | None = None
        with ExitStack() as failing:
            if new is not None:
                failing.push(new)
            failing.enter_context(self._told_once())
            folder = self._parallel.broadcast(None if new is None else new.path)
            assert folder is not None, "the first rank has begun one"
            if self._sharded:
                group = self._parallel.checkpoint_group
                assert group is not None
                written = write_shards(folder, tensors, group, background=self._thread is not None)
            elif self._thread is not None:
                kept = {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
            else:
                kept = tensors
            failing.pop_all()
        if self._thread is None:
            with self._told_once():
                self._complete(new, folder, written, state, export, kept)
        else:
            self._pending = self._thread.submit(self._complete, new, folder, written, state, export, kept)

    def amend(self, state: TrainerState) -> None:
        """Write what became known of a step after it was saved into its checkpoint, if there is one; in the background after that save."""
        if self._folder is None:
            return
        if self._pending is None or self._thread is None:
            self._folder.amend(state)
        else:
            self._pending = self._thread.submit(self._amend_after, self._pending, state)

    def wait(self) -> None:
        """Wait for the save in the background, if there is one, and raise what it raised."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            with self._told_once():
                pending.result()

    @contextmanager
    def _told_once(self) -> Iterator[None]:
        """Where torch.distributed.checkpoint cannot write on one rank, every rank gets the error. Rank 0 reports it, and the others end.

        Raises:
            SystemExit: on the other ranks, with the exit code of wrong input.
        """
        try:
            yield
        except CheckpointException as error:
            if self._folder is None:
                raise SystemExit(2) from error
            raise

    def newest(self, wanted: Callable[[TrainerState], bool]) -> Path | None:
        """The newest checkpoint whose state is wanted, on rank 0; None where there is none, and on the others."""
        found = {} if self._folder is None else checkpoints(self._folder.root)
        return next((found[step] for step in sorted(found, reverse=True) if wanted(load_state(found[step]))), None)

    def close(self) -> None:
        """Wait for the save that is under way, and end the thread."""
        self.wait()
        if self._thread is not None:
            self._thread.shutdown()

    def export(self, name: str, export: Write) -> None:
        """Write ``last`` or ``ema``; every rank calls it."""
        if self._folder is not None:
            self._folder.export(name, export)

    def best(self, state: TrainerState, export: Write) -> None:
        """Write ``best``, the model of the state's lowest WER; every rank calls it."""
        if self._folder is not None:
            write_best(self._folder.root, state, export)

    def _amend_after(self, saved: Future[object], state: TrainerState) -> None:
        saved.result()
        assert self._folder is not None
        self._folder.amend(state)

    def _complete(
        self,
        new: NewFolder | None,
        folder: Path,
        written: Future[object] | None,
        state: TrainerState,
        export: Write,
        tensors: Mapping[str, torch.Tensor] | None,
    ) -> None:
        """Finish a checkpoint: the shards that ``written`` is of, with their checksums, on every rank; then, on rank 0, all else."""
        with ExitStack() as stack:
            if new is not None:
                stack.enter_context(new)
            if written is not None:
                written.result()  # all ranks have written when it is done on any
            known: dict[str, str] = {}
            if self._sharded:
                group = self._parallel.checkpoint_group
                assert group is not None
                known = shard_sums(folder, group)
            if self._folder is None:
                return
            export(folder)
            if tensors is not None:
                write_alone(folder, tensors)
            self._folder.complete(folder, state, world=self._parallel.world, known=known)
        if self._folder is not None:
            self._folder.drop(state)
