"""Opening a run: its folder is claimed, and the run goes to where its checkpoint stands.

Knows in which order the processes do it; what a run may go on from is ``run_folder``'s, what becomes of the rest ``branch``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from arkfast.records import InputError
from arkfast.train.checkpoints.branch import take_up
from arkfast.train.checkpoints.run_folder import RunFolder, TrainerState, load_state
from arkfast.train.config import TrainConfig
from arkfast.train.feed import Feed
from arkfast.train.parallel import Parallel


class Opened(NamedTuple):
    """A run that is ready to go."""

    folder: RunFolder | None
    """On rank 0; None on the others."""
    state: TrainerState
    """Where it stands, the same on every rank."""
    notes: list[str]
    """What there is to say about it; empty on the other ranks."""


def open_run(
    config: TrainConfig, parallel: Parallel, feed: Feed, load: Callable[[Path], None], commits: Mapping[str, str] | None = None
) -> Opened:
    """Claim the run's folder and go to where its checkpoint stands; every rank calls it. ``--calibrate_only`` leaves the folder as it is.

    Args:
        config: names the folder and what to resume.
        parallel: the processes.
        feed: the rows to train on.
        load: reads the optimizer's state from a checkpoint folder. The folder changes only when it has.
        commits: of the models that came from repositories, by flag.

    Raises:
        InputError: as ``RunFolder`` and its ``find_resume`` do, or the checkpoint stands past the end of the data; on rank 0, the other
            ranks exit with it.
    """
    folder: RunFolder | None = None
    found: Path | None = None
    notes: list[str] = []
    with parallel.agreeing():
        if parallel.is_first:
            restarted = parallel.restarts > 0
            folder = RunFolder(config, micro_batches=feed.micro_batches, restarted=restarted, rows=feed.digest, commits=commits)
            found = folder.find_resume(config.resume_from_checkpoint, note=notes.append)
    found = parallel.broadcast(found)
    state = TrainerState(step=0, cursor=0, best_wer=None, best_step=None, skipped=0)
    if found is not None:
        state = load_state(found)
        with parallel.agreeing():
            if feed.end is not None and state.step < feed.total_steps and state.cursor >= feed.end:
                raise InputError(
                    f"--resume_from_checkpoint {found}: stands after {state.cursor} rows, and all epochs of --train_data have "
                    f"{feed.end}; give the manifest that it was trained on, or more --total_epochs"
                )
        load(found)
    if folder is not None and not config.calibrate_only:
        if found is not None:
            state = take_up(folder.root, found, notes.append)
        folder.settle()
    return Opened(folder, parallel.broadcast(state), notes)
