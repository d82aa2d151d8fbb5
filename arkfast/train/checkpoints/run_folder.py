"""Checkpoints: folders that Transformers loads, with what a resume needs beside the weights.

A checkpoint takes its name when it is complete and on disk; nothing old is removed before that. State is safetensors and JSON: no pickle is
read or written. Layout of ``<output_dir>``::

    run.json                       what run this is
    metrics.jsonl                  one line a step
    checkpoints/global_step_N/     model, processor files, optimizer.safetensors (or optimizer/ with the ranks' shards),
                                   trainer_state.json, files.json
    abandoned/K/                   checkpoints, and best, that a resume of an earlier one left behind; nothing removes them
    best/  last/  ema/             model and processor files only; best.json says which evaluation best is of
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from arkfast.command_line import to_dict
from arkfast.files import NewFolder, leftovers, replace_folder, sweep, write_text
from arkfast.records import InputError
from arkfast.train.checkpoints.tensors import FILES, STATE, damage, refuse_foreign, seal
from arkfast.train.config import TrainConfig

IDENTITY = ("stage", "task", "student_model", "student_revision", "teacher_model", "teacher_revision", "train_data", "seed",
            "per_device_train_batch_size", "micro_batches_per_step", "train_max_samples", "shuffle_train", "batch_seconds", "freeze",
            "lora_rank", "lora_alpha")  # fmt: skip
"""What makes two runs the same run: a resume may change anything else, the number of processes too."""
FOLDERS = re.compile(r"global_step_\d+|best|last|ema")
"""Names of the folders that a run replaces."""
BEST = "best.json"
"""In ``best``: the step that its model is of, and its WER."""


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """Where a run stands."""

    step: int
    """Optimizer steps taken or skipped."""
    cursor: int
    """Rows of the data order consumed."""
    best_wer: float | None
    """Lowest WER on the evaluation manifest so far, in percent."""
    best_step: int | None
    """The step that reached it."""
    skipped: int
    """Steps in a row, up to now, that were skipped for a number that was not finite."""
    bad_rows: int = 0
    """Rows of all ranks that were passed over so far."""
    evaluation_due: bool = False
    """Whether the evaluation that belongs to this step is still to come."""
    unfinished: tuple[tuple[int, int], ...] = ()
    """(unfinished, all) rollouts of each of the last logged steps, which ``gates.Watch`` judges together."""


def best_of(state: TrainerState) -> dict[str, float | int | None] | None:
    """The evaluation of a state's lowest WER, as ``BEST`` names it; None before the first."""
    return None if state.best_step is None else {"step": state.best_step, "eval_wer": state.best_wer}


def read_best(folder: Path) -> dict[str, float | int | None] | None:
    """The evaluation that ``best`` is of; None where it does not say (an earlier version wrote it) or is not there."""
    try:
        found: dict[str, float | int | None] = json.loads((folder / BEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found


def write_best(root: Path, state: TrainerState, export: Callable[[Path], None]) -> None:
    """Write a run's ``best``, the model of the state's lowest WER."""

    def write(folder: Path) -> None:
        export(folder)
        (folder / BEST).write_text(json.dumps(best_of(state)) + "\n", encoding="utf-8")

    replace_folder(root / "best", write)


class RunFolder:
    """``output_dir``, claimed for one run; with ``--calibrate_only`` looked at, and left as it is.

    Args:
        config: the run's configuration.
        micro_batches: of all processes in a step.
        restarted: whether the launcher started the processes anew, which go on from what those before them saved, whatever
            ``--resume_from_checkpoint`` says. Otherwise the run may be there already only where that says something.
        rows: digest of the rows to train on; None is not compared.
        commits: of the models that came from repositories, by flag; noted, for a resume and for exports.

    Raises:
        InputError: the folder holds a run and no resume was asked for, or it holds another run than the one to be resumed.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        micro_batches: int | None = None,
        restarted: bool = False,
        rows: str | None = None,
        commits: Mapping[str, str] | None = None,
    ) -> None:
        self.root, self._config, self._restarted = config.output_dir, config, restarted
        self._settled: str | None = None
        """The ``--resume_from_checkpoint`` that processes before these, of the same launch, have carried out."""
        self._keep = config.max_ckpt_to_keep
        window = config.gradient_accumulation_steps if micro_batches is None else micro_batches
        claim = self.root / "run.json"
        ours = {key: value for key, value in (to_dict(config) | {"micro_batches_per_step": window}).items() if key in IDENTITY}
        self._identity: dict[str, object] = ours | ({} if rows is None else {"rows": rows})
        if claim.exists():
            before = json.loads(claim.read_text(encoding="utf-8"))
            theirs, flags = before["identity"], before.get("config", {})
            self._settled = before.get("settled") if restarted else None
            # Runs of one process were once claimed with the number of their micro-batches under another name.
            theirs.setdefault("micro_batches_per_step", theirs.get("gradient_accumulation_steps"))
            # What was no part of the identity when the run was claimed stands among its flags.
            theirs = {key: flags.get(key, ours[key]) for key in ours} | theirs
            if differing := _differing(theirs, ours):
                raise InputError(f"--output_dir {self.root}: holds another run ({differing[0]}); {differing[1] or 'give another folder'}")
            if not (config.resume_from_checkpoint or restarted):
                raise InputError(
                    f"--output_dir {self.root}: holds this run already; give --resume_from_checkpoint auto to go on, or another folder"
                )
        elif self.root.exists() and not self.root.is_dir():
            raise InputError(f"--output_dir {self.root}: is a file; give a new or empty folder")
        elif self.root.exists() and set(self.root.iterdir()) - leftovers(claim):
            raise InputError(f"--output_dir {self.root}: not empty and not a training run; give a new or empty folder")
        self._commits = {"commits": dict(commits)} if commits else {}
        self._claim = {"identity": ours, "config": to_dict(config), **self._commits}
        if not config.calibrate_only:
            self._write_claim(self._settled)
            for parent in (self.root, self.root / "checkpoints"):
                sweep(parent, FOLDERS)
            for folder in checkpoints(self.root).values():
                sweep(folder, re.compile(re.escape(STATE)))

    def _write_claim(self, settled: str | None) -> None:
        write_text(self.root / "run.json", json.dumps(self._claim | {"settled": settled}, indent=2) + "\n")

    def find_resume(self, wanted: str, *, note: Callable[[str], None] = print) -> Path | None:
        """The checkpoint folder that ``--resume_from_checkpoint`` means; None to start anew.

        Args:
            wanted: a folder, ``latest``, ``auto`` or nothing.
            note: told of each damaged checkpoint that ``latest`` and ``auto`` pass over, and of other data.

        Raises:
            InputError: there is none, or the named one is damaged, another program's or another run's.
        """
        named = wanted not in ("", "latest", "auto")
        flag = f"--resume_from_checkpoint {wanted or 'auto'}"
        found: Path | None = None
        # Processes that died before they had gone back to the folder that is named leave that to these.
        if self._restarted and (not named or self._settled == wanted):
            found = _newest_whole(self.root, flag, note)
        if found is None and named:
            found = _whole(Path(wanted), flag)
        elif found is None and wanted:
            found = _newest_whole(self.root, flag, note)
            if found is None and wanted == "latest":
                raise InputError(f"{flag}: {self.root / 'checkpoints'} holds no checkpoint; auto would start anew")
        if found is not None:
            self._check_run(found, flag, note)
        return found

    def _check_run(self, folder: Path, flag: str, note: Callable[[str], None]) -> None:
        """Refuse a checkpoint of another run. Manifests are compared by their rows, wherever they stand."""
        theirs = load_run(folder)
        if theirs is None:
            note(f"{flag}: {folder} does not say which data it was trained on (an earlier version wrote it), so that is not checked")
            return
        ours = {key: value for key, value in self._identity.items() if key != "train_data"}
        if differing := _differing({key: theirs.get(key, ours[key]) for key in ours}, ours):
            hint = differing[1] or f"give --student_model {folder} to begin a run of its own from its weights"
            raise InputError(f"{flag}: {folder} belongs to another run ({differing[0]}); {hint}")

    def settle(self) -> None:
        """Note that the run stands where ``--resume_from_checkpoint`` says: processes started anew go on from its newest checkpoint."""
        self._write_claim(self._config.resume_from_checkpoint)

    def begin(self, step: int) -> NewFolder:
        """The folder of step ``step``'s checkpoint, to be filled."""
        return NewFolder(self.root / "checkpoints" / f"global_step_{step}")

    def complete(self, folder: Path, state: TrainerState, *, world: int = 1) -> None:
        """Complete a checkpoint that is not in its place yet: write where the run stands, and seal it."""
        (folder / STATE).write_text(self._described(state), encoding="utf-8")
        seal(folder, world=world)

    def drop(self, state: TrainerState) -> None:
        """Remove the oldest checkpoints up to the state's step: the newest ones are kept, and that of the lowest WER."""
        steps = checkpoints(self.root)
        for old in sorted(step for step in steps if step <= state.step)[: -self._keep]:
            if old != state.best_step:
                shutil.rmtree(steps[old])

    def amend(self, state: TrainerState) -> None:
        """Write into the checkpoint of the state's step, if there is one, what became known after it was complete."""
        folder = self.root / "checkpoints" / f"global_step_{state.step}"
        if (folder / STATE).is_file():
            write_text(folder / STATE, self._described(state))

    def _described(self, state: TrainerState) -> str:
        return json.dumps(asdict(state) | {"run": self._identity, **self._commits}, indent=2) + "\n"

    def export(self, name: str, export: Callable[[Path], None]) -> None:
        """Write ``last`` or ``ema``."""
        replace_folder(self.root / name, export)


def find_checkpoint(folder: Path, *, note: Callable[[str], None]) -> Path:
    """A whole checkpoint: the folder itself, or the newest of the run that it is.

    Raises:
        InputError: there is none there, or it is damaged.
    """
    flag = f"--checkpoint {folder}"
    newest = _newest_whole(folder, flag, note) if (folder / "checkpoints").is_dir() else _whole(folder, flag)
    if newest is None:
        raise InputError(f"{flag}: the run has no checkpoint yet; give a folder checkpoints/global_step_N")
    return newest


def _whole(folder: Path, flag: str) -> Path:
    refuse_foreign(folder, flag)
    if not (folder / STATE).is_file():
        raise InputError(
            f"{flag}: not a checkpoint folder (no {STATE}); give checkpoints/global_step_N of a run, or latest or auto to resume"
        )
    if reason := damage(folder):
        raise InputError(f"{flag}: damaged ({reason}); give an earlier one, or latest, which passes over it")
    return folder


def _newest_whole(root: Path, flag: str, note: Callable[[str], None]) -> Path | None:
    steps = checkpoints(root)
    damaged = []
    for step in sorted(steps, reverse=True):
        if (reason := damage(steps[step])) is None:
            return steps[step]
        damaged.append(f"{steps[step]} is damaged ({reason})")
        note(f"{flag}: {damaged[-1]}; the one before it is used")
    refuse_foreign(root / "checkpoints", flag)
    if damaged:
        raise InputError(f"{flag}: no checkpoint is whole: {'; '.join(damaged)}; remove them to start anew")
    return None


def checkpoints(root: Path) -> dict[int, Path]:
    """A run's checkpoints by step, whole or damaged."""
    found = {}
    for folder in (root / "checkpoints").glob("global_step_*"):
        match = re.fullmatch(r"global_step_(\d+)", folder.name)
        if match and ((folder / STATE).is_file() or (folder / FILES).is_file()):
            found[int(match[1])] = folder
    return found


def load_state(folder: Path) -> TrainerState:
    """Where the run of a checkpoint folder stands."""
    saved, known = json.loads((folder / STATE).read_text(encoding="utf-8")), {field.name for field in fields(TrainerState)}
    state = TrainerState(**{name: value for name, value in saved.items() if name in known})
    return replace(state, unfinished=tuple((cut, rollouts) for cut, rollouts in state.unfinished))


def load_run(folder: Path) -> dict[str, Any] | None:
    """What run a checkpoint folder belongs to: ``IDENTITY``, and ``rows``, the digest of its training rows; None where it does not say."""
    run: dict[str, Any] | None = json.loads((folder / STATE).read_text(encoding="utf-8")).get("run")
    return run


def load_commits(folder: Path) -> dict[str, str]:
    """The commits of the models of a checkpoint's run that came from repositories, by flag."""
    commits: dict[str, str] = json.loads((folder / STATE).read_text(encoding="utf-8")).get("commits", {})
    return commits


def _differing(theirs: dict[str, Any], ours: dict[str, Any]) -> tuple[str, str] | None:
    """How two identities differ, and what to do where giving the other's flags makes them one (else nothing); None where they do not."""
    keys = [key for key in ours if theirs.get(key) != ours[key]]
    if not keys:
        return None
    shown = ", ".join("other rows to train on" if key == "rows" else f"{key} {theirs.get(key)!r} there, {ours[key]!r} here" for key in keys)
    fitting = ("freeze", "lora_rank", "lora_alpha", "micro_batches_per_step")
    if not set(keys) <= set(fitting):
        return shown, ""
    words = {key: ",".join(value) if isinstance(value := theirs.get(key), list) else value for key in keys}
    flags = (f"--{key} {value}" if value != "" else f"no --{key}" for key, value in words.items())
    return shown, f"give {', '.join(flags)} to go on with it, or another folder"
