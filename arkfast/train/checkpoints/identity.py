"""What makes two runs the same run: the settings that a resume keeps, the rows as they are planned, and the models by their contents.

Names do not count: the same files under another path, or through a link, are the same run, and a folder whose contents were replaced is
another one. Contents are digests. Those of a model are ``arkfast.models.contents``'. Those of the rows are of their ids and segments, the
audio as the manifest writes it, texts, languages, and the seconds that batches are planned with; the recordings themselves are not read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from arkfast.data.shards import TarMember
from arkfast.models.contents import contents_of_model, digest
from arkfast.records import JsonRow, Utterance

IDENTITY = ("stage", "task", "student_model", "student_revision", "teacher_model", "teacher_revision", "train_data", "seed",
            "per_device_train_batch_size", "micro_batches_per_step", "train_max_samples", "shuffle_train", "batch_seconds", "freeze",
            "lora_rank", "lora_alpha")  # fmt: skip
"""What a run's folder and its checkpoints say of the run. A resume may change anything else, the number of processes too."""
NAMES = {"student_model": ("student_model", "student_revision"), "teacher_model": ("teacher_model", "teacher_revision"),
         "rows": ("train_data", "train_max_samples")}  # fmt: skip
"""What has contents → the settings that only name it, which are compared where the contents are not known."""
FITTING = ("freeze", "lora_rank", "lora_alpha", "micro_batches_per_step")
"""Settings that a user can simply give as the run has them."""
Contents: TypeAlias = dict[str, dict[str, str]]
"""For ``rows``, ``student_model`` and ``teacher_model``: the parts' names → their digests."""


def contents_of_rows(rows: Sequence[Utterance], seconds: Sequence[float]) -> dict[str, str]:
    """The digests of rows to train on.

    Args:
        rows: in the manifest's order.
        seconds: how long each is taken to be when batches are planned.
    """
    return {
        "count": str(len(rows)),
        # As an earlier version wrote it, which knew nothing else.
        "ids and segments": hashlib.blake2b("\n".join(f"{row.id} {row.begin} {row.end}" for row in rows).encode()).hexdigest(),
        "audio paths": digest(_heard(row) for row in rows),
        "texts": digest(row.text for row in rows),
        "languages": digest(row.language for row in rows),
        "lengths": digest(seconds),
    }


def contents_of_run(rows: Sequence[Utterance], seconds: Sequence[float], student: Path, teacher: Path | None) -> Contents:
    """The contents of all that a run is made of, models as local folders."""
    found = {"rows": contents_of_rows(rows, seconds), "student_model": contents_of_model(student)}
    return found if teacher is None else {**found, "teacher_model": contents_of_model(teacher)}


def same_model(theirs: Mapping[str, str], folder: Path) -> str | None:
    """What of a model in a folder is not as it was, in words; None where all is."""
    ours = contents_of_model(folder)
    return _parts(theirs, ours) if theirs and theirs != ours else None


class Difference(NamedTuple):
    """How two runs differ."""

    shown: str
    """What differs."""
    hint: str
    """What to do, where that is known: nothing to say otherwise."""


def compare(
    theirs: JsonRow, ours: JsonRow, *, parts: Iterable[str] = NAMES, allowed: Sequence[str] = (), note: Callable[[str], None]
) -> Difference | None:
    """How another run differs from this one; None where they are the same.

    Args:
        theirs: what a run's folder or a checkpoint says of its run: settings of ``IDENTITY``, and ``contents``.
        ours: the same of this run.
        parts: the contents that are compared.
        allowed: contents that may differ.
        note: told in a sentence where they do.
    """
    named = {name for names in NAMES.values() for name in names}
    settings = [key for key in ours if key in IDENTITY and key not in named and theirs.get(key) != ours[key]]
    changed = {part: differing for part in parts if (differing := _contents_differ(part, theirs, ours))}
    for part in changed.keys() & set(allowed):
        note(f"--allow_changed {part}: goes on with {changed.pop(part)}")
    if not settings and not changed:
        return None
    shown = [*(f"{key} {theirs.get(key)!r} there, {ours[key]!r} here" for key in settings), *changed.values()]
    hint = ""
    if settings and set(settings) <= set(FITTING):
        words = {key: ",".join(value) if isinstance(value := theirs.get(key), list) else value for key in settings}
        flags = (f"--{key} {value}" if value != "" else f"no --{key}" for key, value in words.items())
        hint = f"give {', '.join(flags)} to go on with it, or another folder"
    elif not settings:
        hint = f"give what the run began with, or --allow_changed {','.join(changed)} to go on all the same"
    return Difference(", ".join(shown), hint)


def _contents_differ(part: str, theirs: JsonRow, ours: JsonRow) -> str | None:
    """How one of the contents differs, in words."""
    a, b = _contents(theirs).get(part), _contents(ours).get(part)
    what = "other rows to train on" if part == "rows" else f"another {part}"
    if a and b:
        if a == b:
            return None
        if part == "rows" and a.get("count") != b.get("count"):
            return f"{what}: {a.get('count')} there, {b.get('count')} here"
        return f"{what}: {_parts(a, b)}"
    if part == "rows":
        before = theirs.get("rows")  # an earlier version's digest
        return what if isinstance(before, str) and b and before != b["ids and segments"] else None
    differing = [name for name in NAMES[part] if name in ours and not _same_name(theirs.get(name), ours[name])]
    return ", ".join(f"{name} {theirs.get(name)!r} there, {ours[name]!r} here" for name in differing) or None


def _parts(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str:
    """Which parts differ."""
    names = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    return f"other {', '.join(names)}"


def _contents(run: JsonRow) -> Contents:
    found = run.get("contents")
    return found if isinstance(found, dict) else {}


def _same_name(a: object, b: object) -> bool:
    return a == b or (isinstance(a, str) and isinstance(b, str) and Path(a).exists() and Path(a).resolve() == Path(b).resolve())


def _heard(row: Utterance) -> object:
    """The audio as the manifest writes it, with the channel and the track where some are chosen."""
    written = _audio_as_written(row)
    return written if row.channel is None and row.audio_track is None else [written, row.channel, row.audio_track]


def _audio_as_written(row: Utterance) -> str | None:
    written = row.extra.get("audio", row.audio)
    if not isinstance(written, str):
        return None
    if (member := TarMember.parse(written)) is not None and written == row.audio:  # a shard, by the path that it was found under
        return f"{Path(member.path).name}::{written.partition('::')[2]}"
    return written
