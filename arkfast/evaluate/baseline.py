"""An earlier evaluation to compare with: its summary, and its rows where they are still at hand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from arkfast.evaluate.summary import read_summary
from arkfast.files.inputs import open_bytes
from arkfast.infer.jsonl import read_rows
from arkfast.records import InputError, JsonObject, JsonRow

_BLOCK = 1 << 20  # bytes hashed at a time
_LARGEST = 2**53  # a count above it is none, and sums of such counts would not fit
_TEXT: tuple[type, ...] = (str, type(None))
_RATE: tuple[type, ...] = (int, float, type(None))
_OF_SUMMARY: dict[str, tuple[type, ...]] = {"normalizer": (dict,), "output": _TEXT, "output_sha256": _TEXT}
_OF_GROUP: dict[str, tuple[type, ...]] = {
    "preset": _TEXT, "language": _TEXT, "metric": (str,), "utterances": (int,), "reference_units": (int,), "rate": _RATE,
    "rate_with_failures": _RATE, "counts": (list,),
}  # fmt: skip


def read_baseline(path: Path) -> JsonObject:
    """``read_summary`` with all that a comparison needs, each field of its kind. ``transcripts_sha256`` is None in files that lack it.

    Raises:
        InputError: as ``read_summary``, or a field is missing or of another kind.
    """
    value: JsonObject = {"transcripts_sha256": None} | read_summary(path)
    groups = [("", value), *((f"groups[{i}].", group) for i, group in enumerate(value["groups"]))]
    missing = set(_OF_SUMMARY) - set(value)
    for _, group in groups:
        missing |= set(_OF_GROUP) - set(group if isinstance(group, dict) else ())
    if missing:
        raise InputError(f"{path}: lacks {', '.join(sorted(missing))}; write it anew with arkfast evaluate --summary")
    faults = [name for name, kinds in (_OF_SUMMARY | {"transcripts_sha256": _TEXT}).items() if not _is(value[name], kinds)]
    if isinstance(value["normalizer"], dict) and not all(
        isinstance(value["normalizer"].get(n), str) for n in ("name", "version", "sha256")
    ):
        faults.append("normalizer")
    for where, group in groups:
        faults += [where + name for name in _group_faults(group)]
    if faults:
        raise InputError(
            f"{path}: {', '.join(faults)}: not what arkfast evaluate --summary writes there; write the file anew rather than by hand"
        )
    return value


def baseline_rows(baseline: JsonRow, compare: Path | None, others: Sequence[JsonObject] | None) -> tuple[Sequence[JsonObject] | None, str]:
    """The baseline's rows where they are at hand and still what they were, and the sentence that says why they are or are not.

    Args:
        baseline: as ``read_baseline`` gives it.
        compare: the file given with ``--compare``: the baseline's where it is the one that was scored then, or the one that was written.
        others: its rows.
    """
    digest = baseline["output_sha256"]
    known = {digest, baseline["transcripts_sha256"]} - {None}
    if others is not None and compare is not None and sha256_of(compare) in known:
        return others, f"its rows are those of {compare}"
    given = "" if compare is None else f", and {compare} is neither the file that it scored nor the one that it wrote"
    if digest is None or baseline["output"] is None:
        return None, f"its rows were not kept{given}"
    path = Path(baseline["output"])
    if not path.is_file():
        return None, f"its rows are not at {path} any more{given}"
    if sha256_of(path) != digest:
        return None, f"{path} has been changed since{given}"
    return list(read_rows(path)), f"its rows are in {path}"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open_bytes(path) as file:  # a pipe too, whose rows have been read before
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _is(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _group_faults(group: JsonRow) -> list[str]:
    faults = [name for name, kinds in _OF_GROUP.items() if not _is(group[name], kinds)]
    if faults:
        return faults
    units, counts = group["reference_units"], group["counts"]
    if units:
        faults = [name for name in ("rate", "rate_with_failures") if group[name] is None]
    if not all(_is_counts(item) for item in counts) or sum(of * often for _, of, often in counts) != units:
        faults.append("counts")
    return faults


def _is_counts(item: object) -> bool:
    """Whether it is [errors, reference units, how often]."""
    return isinstance(item, list) and len(item) == 3 and all(_is(count, (int,)) and 0 <= count < _LARGEST for count in item)
