"""Opening a run: before models load its folder is looked at, afterwards it is claimed and the run goes to where its checkpoint stands.

What a run may go on from is decided in ``run_folder``, what becomes of the rest in ``branch``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from arkfast.records import InputError
from arkfast.train.checkpoints.branch import take_up
from arkfast.train.checkpoints.identity import contents_of_run
from arkfast.train.checkpoints.run_folder import RunFolder, TrainerState, load_state
from arkfast.train.checkpoints.sums import Verification
from arkfast.train.checkpoints.tensors import damage
from arkfast.train.config import TrainConfig
from arkfast.train.feed import Feed, Rows, micro_batches
from arkfast.train.parallel import Parallel


@dataclass
class Found:
    """What stands in a run's folder, as rank 0 knows it; the other ranks have nothing of it."""

    folder: RunFolder | None = None
    checkpoint: Path | None = None
    """The one to go on from, by its sizes and headers."""
    verification: Verification | None = None
    """Looks at the checkpoint's every byte meanwhile."""
    notes: list[str] = field(default_factory=list)
    """What there is to say about it."""

    def note(self, text: str) -> None:
        """Remember to say something, once."""
        if text not in self.notes:
            self.notes.append(text)

    def look(self, config: TrainConfig) -> None:
        """Begin to verify the checkpoint."""
        self.verification = None
        if self.checkpoint is not None and config.verify_checkpoints == "full":
            self.verification = Verification(partial(damage, self.checkpoint, full=True))


class Opened(NamedTuple):
    """A run that is ready to go."""

    folder: RunFolder | None
    """On rank 0; None on the others."""
    state: TrainerState
    """Where it stands, the same on every rank."""
    notes: list[str]
    """What there is to say about it; empty on the other ranks."""


def find_run(config: TrainConfig, parallel: Parallel, rows: Rows, models: TrainConfig, commits: Mapping[str, str]) -> Found:
    """Look at the run's folder before models load, and begin to verify the checkpoint that it goes on from; every rank calls it.

    Args:
        config: names the folder and what to resume.
        parallel: the processes.
        rows: the rows to train on.
        models: the same configuration, with local folders in the place of models.
        commits: of the models that came from repositories, by flag.

    Raises:
        InputError: as ``RunFolder`` and its ``find_resume`` do; on rank 0, the other ranks exit with it.
    """
    found = Found()
    with parallel.agreeing():
        if parallel.is_first:
            teacher = None if config.stage == "sft" else models.teacher_model
            found.folder = RunFolder(
                config,
                micro_batches=micro_batches(config, parallel),
                restarted=parallel.restarts > 0,
                contents=contents_of_run(rows.train, rows.seconds, models.student_model, teacher),
                commits=commits,
                note=found.note,
            )
            found.checkpoint = found.folder.find_resume(config.resume_from_checkpoint)
            found.look(config)
    return found


def open_run(found: Found, config: TrainConfig, parallel: Parallel, feed: Feed, load: Callable[[Path], None]) -> Opened:
    """Claim the run's folder and go to where its checkpoint stands; every rank calls it. ``--calibrate_only`` leaves the folder as it is.

    Args:
        found: what stands there.
        config: names the folder and what to resume.
        parallel: the processes.
        feed: the rows to train on.
        load: reads the optimizer's state from a checkpoint folder. The folder changes only when it has.

    Raises:
        InputError: no checkpoint is whole, or the one to go on from stands past the end of the data; on rank 0, the other ranks exit with
            it.
    """
    folder, refused = found.folder, dict[Path, str]()
    with parallel.agreeing():
        while folder is not None and found.verification is not None and (reason := found.verification.damage()):
            assert found.checkpoint is not None
            refused[found.checkpoint] = reason
            found.checkpoint = folder.find_resume(config.resume_from_checkpoint, refused=refused)
            found.look(config)
    checkpoint = parallel.broadcast(found.checkpoint)
    state = TrainerState(step=0, cursor=0, best_wer=None, best_step=None, skipped=0)
    if checkpoint is not None:
        state = load_state(checkpoint)
        with parallel.agreeing():
            if feed.end is not None and state.cursor > feed.end:
                raise InputError(
                    f"--resume_from_checkpoint {checkpoint}: stands after {state.cursor} rows, and all epochs of --train_data have "
                    f"{feed.end}; give the manifest that it was trained on, or more --total_epochs"
                )
        load(checkpoint)
    if checkpoint is not None and state.step >= feed.total_steps(state.step, state.cursor):
        asked = f"--max_steps {config.max_steps}" if config.max_steps else f"--total_epochs {config.total_epochs}"
        found.note(f"{asked}: the run stands after step {state.step} already, so nothing is trained; give more to go on")
    with parallel.agreeing():
        if folder is not None and not config.calibrate_only:
            folder.claim()
            if checkpoint is not None:
                state = take_up(folder.root, checkpoint, found.note)
            folder.settle()
    return Opened(folder, parallel.broadcast(state), found.notes)
