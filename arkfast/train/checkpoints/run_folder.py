"""Checkpoints: folders that Transformers loads, with what a resume needs beside the weights.

A checkpoint takes its name when it is complete and on disk; nothing old is removed before that. State is safetensors and JSON: no pickle is
read or written. Layout of ``<output_dir>``::

    .lock                          which process writes here, while one does
    run.json                       what run this is
    metrics.jsonl                  one line a step
    checkpoints/global_step_N/     model, processor files, optimizer.safetensors (or optimizer/ with the ranks' shards),
                                   trainer_state.json, files.json
    abandoned/K/                   checkpoints, and best, that a resume of an earlier one left behind; nothing removes them
    best/  last/  ema/             model and processor files only; best.json says which evaluation best is of
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from arkfast.command_line import to_dict
from arkfast.files import NewFolder, json_text, leftovers, move, replace_folder, sweep, write_text
from arkfast.files.names import remove_folder
from arkfast.records import InputError, JsonObject
from arkfast.train.checkpoints.identity import IDENTITY, Contents, compare
from arkfast.train.checkpoints.settings import changed
from arkfast.train.checkpoints.tensors import FILES, STATE, damage, refuse_foreign, seal
from arkfast.train.config import TrainConfig

FOLDERS = re.compile(r"global_step_\d+|best|last|ema")
"""Names of the folders that a run replaces."""
MODELS = ("student_model", "teacher_model")
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
    """Lowest WER on the evaluation manifest so far, in percent; a number, or None before there was one."""
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
    best_dev: str | None = None
    """Digest of the rows that the lowest WER was measured on; None where an earlier version measured it."""
    last_cursor: int | None = None
    """Rows of the data order consumed before the last step, so that its loss can be computed again; None where that is not known."""
    last_loss: float | None = None
    """The loss that was logged of the last step; None where it was not finite, or is not known."""


def best_of(state: TrainerState) -> dict[str, float | int | str | None] | None:
    """The evaluation of a state's lowest WER, as ``BEST`` names it; None before the first."""
    if state.best_step is None:
        return None
    dev = {} if state.best_dev is None else {"dev": state.best_dev}
    return {"step": state.best_step, "eval_wer": state.best_wer, **dev}


def read_best(folder: Path) -> dict[str, float | int | str | None] | None:
    """The evaluation that ``best`` is of; None where it does not say (an earlier version wrote it, or it is damaged) or is not there."""
    try:
        found: dict[str, float | int | str | None] = json.loads((folder / BEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found


def write_best(root: Path, state: TrainerState, export: Callable[[Path], None]) -> None:
    """Write a run's ``best``, the model of the state's lowest WER."""

    def write(folder: Path) -> None:
        export(folder)
        (folder / BEST).write_text(json_text(best_of(state)) + "\n", encoding="utf-8")

    replace_folder(root / "best", write)


class RunFolder:
    """``output_dir`` of one run. It is looked at first, what killed processes left in it is cleared away, and it is claimed once the run is
    sure to begin. With ``--calibrate_only`` it is left as it is.

    Args:
        config: the run's configuration.
        micro_batches: of all processes in a step.
        restarted: whether the launcher started the processes anew, which go on from what those before them saved, whatever
            ``--resume_from_checkpoint`` says. Otherwise the run may be there already only where that says something.
        contents: of rows and models; None is not compared.
        commits: of the models that came from repositories, by flag; noted, for a resume and for exports.
        note: told what is out of order and was put up with.

    Raises:
        InputError: the folder holds a run and no resume was asked for, or it holds another run than the one to be resumed.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        micro_batches: int | None = None,
        restarted: bool = False,
        contents: Contents | None = None,
        commits: Mapping[str, str] | None = None,
        note: Callable[[str], None] = print,
    ) -> None:
        self.root, self._config, self._restarted, self._note = config.output_dir, config, restarted, note
        self._settled: str | None = None
        """The ``--resume_from_checkpoint`` that processes before these, of the same launch, have carried out."""
        self._keep = config.max_ckpt_to_keep
        self._flags = to_dict(config)
        self._flags_before: JsonObject = {}
        """Those of the launch before this one."""
        self._damaged_claim = False
        window = config.gradient_accumulation_steps if micro_batches is None else micro_batches
        ours = {key: value for key, value in (to_dict(config) | {"micro_batches_per_step": window}).items() if key in IDENTITY}
        self._identity: JsonObject = ours | ({} if contents is None else {"contents": contents})
        check_folder(self.root)
        resumes, before = bool(config.resume_from_checkpoint or restarted), self._read_claim()
        if before is not None:
            theirs, flags = before["identity"], before.get("config", {})
            self._flags_before = flags
            self._settled = before.get("settled") if restarted else None
            # Runs of one process were once claimed with the number of their micro-batches under another name.
            theirs.setdefault("micro_batches_per_step", theirs.get("gradient_accumulation_steps"))
            # What was no part of the identity when the run was claimed stands among its flags.
            theirs = {key: flags.get(key, ours[key]) for key in ours} | theirs
            # Rows are compared with a checkpoint's: before there is one, nothing is lost by a change.
            if differing := compare(theirs, self._identity, parts=MODELS, allowed=config.allow_changed, note=note):
                hint = differing.hint or "give another folder"
                raise InputError(f"--output_dir {self.root}: holds another run ({differing.shown}); {hint}")
            if not resumes:
                raise InputError(
                    f"--output_dir {self.root}: holds this run already; give --resume_from_checkpoint auto to go on, or another folder"
                )
        elif self._damaged_claim or checkpoints(self.root):
            what = "is damaged" if self._damaged_claim else "is missing"
            if not resumes:
                raise InputError(
                    f"--output_dir {self.root}: holds a run whose run.json {what}; give --resume_from_checkpoint auto to go on from its "
                    "checkpoints, or another folder"
                )
            aside = "; it is moved aside" if self._damaged_claim else ""
            note(f"--output_dir {self.root}: run.json {what}{aside}; which run this is, its checkpoints say")
        elif self.root.is_dir() and set(self.root.iterdir()) - leftovers(self._claim_file) - {lock_file(self.root)}:
            raise InputError(f"--output_dir {self.root}: not empty and not a training run; give a new or empty folder")
        self._commits = {"commits": dict(commits)} if commits else {}
        self._claim = {"identity": self._identity, "config": self._flags, **self._commits}
        if not config.calibrate_only:
            if before is not None:
                self._write_claim(self._settled)  # a launch that begins has carried out nothing yet, whatever the one before it had
            for parent in (self.root, self.root / "checkpoints"):
                sweep(parent, FOLDERS)
            for folder in checkpoints(self.root).values():
                sweep(folder, re.compile(re.escape(STATE)))

    @property
    def _claim_file(self) -> Path:
        return self.root / "run.json"

    def _read_claim(self) -> JsonObject | None:
        """What ``run.json`` says; None where there is none, or a damaged one."""
        try:
            before: JsonObject = json.loads(self._claim_file.read_text(encoding="utf-8"))
            if isinstance(before["identity"], dict) and isinstance(before.get("config", {}), dict):
                return before
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"--output_dir {self.root}: its run.json cannot be read ({error.strerror or error})") from error
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        self._damaged_claim = True
        return None

    def claim(self) -> RunFolder:
        """Write down which run the folder is of; returns itself."""
        if self._damaged_claim:
            set_aside(self._claim_file)
            self._damaged_claim = False
        self._write_claim(self._settled)
        return self

    def _write_claim(self, settled: str | None) -> None:
        write_text(self._claim_file, json_text(self._claim | {"settled": settled}, indent=2) + "\n")

    def find_resume(
        self, wanted: str, *, note: Callable[[str], None] | None = None, refused: Mapping[Path, str] | None = None
    ) -> Path | None:
        """The checkpoint folder that ``--resume_from_checkpoint`` means; None to start anew.

        Args:
            wanted: a folder, ``latest``, ``auto`` or nothing.
            note: told of each damaged checkpoint that ``latest`` and ``auto`` pass over, and of other contents; that of the folder by
                default.
            refused: checkpoints that were found to be damaged, and why.

        Raises:
            InputError: there is none, or the named one is damaged, another program's or another run's.
        """
        note = note or self._note
        named = wanted not in ("", "latest", "auto")
        flag = f"--resume_from_checkpoint {wanted or 'auto'}"
        found: Path | None = None
        # Processes that died before they had gone back to the folder that is named leave that to these.
        if self._restarted and (not named or self._settled == wanted):
            found = _newest_whole(self.root, flag, note, refused)
        if found is None and named:
            found = _whole(Path(wanted), flag, refused)
        elif found is None and wanted:
            found = _newest_whole(self.root, flag, note, refused)
            if found is None and wanted == "latest":
                raise InputError(f"{flag}: {self.root / 'checkpoints'} holds no checkpoint; auto would start anew")
        if found is not None:
            self._check_run(found, flag, note)
            if said := changed(_load_flags(found) or self._flags_before, self._flags):
                note(said)
        return found

    def _check_run(self, folder: Path, flag: str, note: Callable[[str], None]) -> None:
        """Refuse a checkpoint of another run."""
        theirs = load_run(folder)
        if theirs is None:
            note(f"{flag}: {folder} does not say which data it was trained on (an earlier version wrote it), so that is not checked")
            return
        theirs = {**{key: value for key, value in self._identity.items() if key in IDENTITY}, **theirs}
        if differing := compare(theirs, self._identity, allowed=self._config.allow_changed, note=note):
            hint = differing.hint or f"give --student_model {folder} to begin a run of its own from its weights"
            raise InputError(f"{flag}: {folder} belongs to another run ({differing.shown}); {hint}")

    def settle(self) -> None:
        """Note that this launch has gone to where ``--resume_from_checkpoint`` says. Processes that the launcher starts anew then go on
        from the newest checkpoint."""
        self._write_claim(self._config.resume_from_checkpoint)

    def begin(self, step: int) -> NewFolder:
        """The folder of step ``step``'s checkpoint, to be filled."""
        return NewFolder(self.root / "checkpoints" / f"global_step_{step}")

    def complete(self, folder: Path, state: TrainerState, *, world: int = 1, known: Mapping[str, str] | None = None) -> None:
        """Complete a checkpoint that is not in its place yet: write where the run stands, and seal it; ``known`` are checksums of files."""
        (folder / STATE).write_text(self._described(state), encoding="utf-8")
        seal(folder, world=world, known=known)

    def drop(self, state: TrainerState) -> None:
        """Remove the oldest checkpoints up to the state's step: the newest ones are kept, and that of the lowest WER."""
        steps = checkpoints(self.root)
        for old in sorted(step for step in steps if step <= state.step)[: -self._keep]:
            if old != state.best_step:
                remove_folder(steps[old])

    def amend(self, state: TrainerState) -> None:
        """Write into the checkpoint of the state's step, if there is one, what became known after it was complete."""
        folder = self.root / "checkpoints" / f"global_step_{state.step}"
        if (folder / STATE).is_file():
            write_text(folder / STATE, self._described(state))

    def _described(self, state: TrainerState) -> str:
        return json_text(asdict(state) | {"run": self._identity, "config": self._flags, **self._commits}, indent=2) + "\n"

    def export(self, name: str, export: Callable[[Path], None]) -> None:
        """Write ``last`` or ``ema``."""
        replace_folder(self.root / name, export)


def check_folder(root: Path) -> None:
    """Raise ``InputError`` where a file stands in the place of the run's folder, or of one above it."""
    for path in (root, *root.parents):
        if path.exists():
            if not path.is_dir():
                raise InputError(f"--output_dir {root}: {'is' if path == root else f'{path} is'} a file; give a new or empty folder")
            return


def lock_file(root: Path) -> Path:
    """The file that says which process writes into a run's folder."""
    return root / ".lock"


def set_aside(path: Path) -> Path:
    """Give a damaged file of a run another name, which nothing reads; returns that."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    move(path, aside)
    return aside


def find_checkpoint(folder: Path, *, note: Callable[[str], None]) -> Path:
    """A whole checkpoint, every byte of it compared with its checksums: the folder itself, or the newest of the run that it is.

    Raises:
        InputError: there is none there, or it is damaged.
    """
    flag, refused = f"--checkpoint {folder}", dict[Path, str]()
    while True:
        newest = _newest_whole(folder, flag, note, refused) if (folder / "checkpoints").is_dir() else _whole(folder, flag, refused)
        if newest is None:
            raise InputError(f"{flag}: the run has no checkpoint yet; give a folder checkpoints/global_step_N")
        if (reason := damage(newest, full=True)) is None:
            return newest
        refused[newest] = reason


def _whole(folder: Path, flag: str, refused: Mapping[Path, str] | None = None) -> Path:
    refuse_foreign(folder, flag)
    if not (folder / STATE).is_file():
        raise InputError(
            f"{flag}: not a checkpoint folder (no {STATE}); give checkpoints/global_step_N of a run, or latest or auto to resume"
        )
    if reason := (refused or {}).get(folder) or damage(folder):
        raise InputError(f"{flag}: damaged ({reason}); give an earlier one, or latest, which passes over it")
    return folder


def _newest_whole(root: Path, flag: str, note: Callable[[str], None], refused: Mapping[Path, str] | None = None) -> Path | None:
    steps = checkpoints(root)
    damaged = []
    for step in sorted(steps, reverse=True):
        if (reason := (refused or {}).get(steps[step]) or damage(steps[step])) is None:
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
    if state.best_wer is None or not math.isfinite(state.best_wer):  # earlier versions kept a rate that does not exist as the best
        state = replace(state, best_wer=None, best_step=None)
    return replace(state, unfinished=tuple((cut, rollouts) for cut, rollouts in state.unfinished))


def load_run(folder: Path) -> JsonObject | None:
    """What run a checkpoint folder belongs to: ``IDENTITY``, and ``contents``; None where it does not say."""
    run: JsonObject | None = json.loads((folder / STATE).read_text(encoding="utf-8")).get("run")
    return run


def _load_flags(folder: Path) -> JsonObject:
    """The settings with which a checkpoint was trained, by flag; none where an earlier version wrote it."""
    flags: JsonObject = json.loads((folder / STATE).read_text(encoding="utf-8")).get("config", {})
    return flags


def load_commits(folder: Path) -> dict[str, str]:
    """The commits of the models of a checkpoint's run that came from repositories, by flag."""
    commits: dict[str, str] = json.loads((folder / STATE).read_text(encoding="utf-8")).get("commits", {})
    return commits
