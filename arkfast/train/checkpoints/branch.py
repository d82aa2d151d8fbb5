"""Going back: what of a run's folder leads to the checkpoint that it goes on from stays, the rest is set aside whole.

The checkpoint is in its place before the others leave theirs, so that a process that dies in between loses nothing, and the next one may
do it again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import asdict, replace
from pathlib import Path

from arkfast.files import NewFolder, json_text, make_folder, move, naming, write_text
from arkfast.train.checkpoints.run_folder import TrainerState, best_of, checkpoints, load_state, read_best, write_best
from arkfast.train.checkpoints.tensors import ALONE, FILES, SHARDS, STATE, damage


def take_up(root: Path, folder: Path, note: Callable[[str], None]) -> TrainerState:
    """Make ``folder`` the newest checkpoint of a run, and ``best`` the model that its state names.

    A checkpoint that is not one of the run's, or no more, comes to stand at ``checkpoints/global_step_N`` besides; then none of the run's
    leads to it. Those that do not lead to it are moved to ``abandoned/K``, K counted from 1, and ``best`` with them where it is of another
    evaluation; it then is filled anew from the checkpoint that reached the lowest WER. Where none is moved, nothing changes.

    Args:
        root: the run's folder.
        folder: a whole checkpoint.
        note: told what was moved, and where that of the lowest WER is gone.

    Returns:
        Where the run stands, which ``folder``'s place in the run says too: its state, without a best step if the model of that is gone.

    Raises:
        OSError: a file cannot be copied.
        InputError: there is no more room, or a folder cannot be moved. What was moved by then is whole.
    """
    state = load_state(folder)
    target = root / "checkpoints" / f"global_step_{state.step}"
    own = folder.resolve() == target.resolve()
    others = [path for step, path in sorted(checkpoints(root).items()) if not own or step > state.step]
    if own and not others:
        return state
    aside = _next(root / "abandoned")
    moved: list[str] = []
    if not own:
        new = NewFolder(target)
        with new as temporary:
            link_files(folder, temporary)
            new.sync()  # before the one in its place leaves that
            if target in others:
                others.remove(target)
                _move(target, aside, moved)
        note(f"going on from {folder}, which stands at {target} too from now on")
    best, wanted = root / "best", best_of(state)
    if wanted is None or read_best(best) != wanted:
        if best.is_dir():
            _move(best, aside, moved)
        if wanted is not None:
            source = _reached(state, folder, root)
            if source is not None:
                write_best(root, state, lambda into: link_files(source, into, without=(ALONE, SHARDS, STATE, FILES)))
            else:
                note(f"{folder}: the model of its lowest WER, of step {state.best_step}, is gone; the next evaluation's is the best")
                state = replace(state, best_wer=None, best_step=None)
                saved = json.loads((target / STATE).read_text(encoding="utf-8"))
                write_text(target / STATE, json_text(saved | asdict(state), indent=2) + "\n")
    for path in others:
        _move(path, aside, moved)
    if moved:
        note(f"going on from {folder}: {', '.join(moved)} moved to {aside}; remove that when nothing in it is needed")
    return state


def _reached(state: TrainerState, folder: Path, root: Path) -> Path | None:
    """The checkpoint that reached a state's lowest WER: the folder itself, one beside it or the run's own; None where it is gone.

    One of the same step may belong to another branch, so its own state must name the same step and WER.
    """
    name = f"global_step_{state.best_step}"
    for found in (folder, folder.parent / name, root / "checkpoints" / name):
        if damage(found) is None and (there := load_state(found)).step == state.best_step and best_of(there) == best_of(state):
            return found
    return None


def _next(parent: Path) -> Path:
    return parent / str(1 + max((int(path.name) for path in parent.glob("*") if path.name.isdecimal()), default=0))


def _move(path: Path, aside: Path, moved: list[str]) -> None:
    with naming(aside):
        make_folder(aside)
    move(path, aside / path.name)
    moved.append(path.name)


def link_files(source: Path, into: Path, *, without: Collection[str] = ()) -> None:
    """The files of a folder in another, save those that begin with a name in ``without``; copies where they cannot be hard links.

    A file that is only ever replaced, never written to again, may have both names: what becomes of one does not touch the other.
    """
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if name.parts[0] in without or not path.is_file():
            continue
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path.resolve(), into / name)
        except OSError:
            shutil.copyfile(path, into / name)
