"""Whether a teacher's ids are the student's."""

from __future__ import annotations

import json

from arkfast.records import AllowedTokens, InputError, TokenizerLike

SHOWN = 5  # differing ids named in the error


def check_same_vocabulary(student: TokenizerLike, teacher: TokenizerLike, allowed: AllowedTokens, *, backend: str = "arkasr") -> None:
    """Raise unless every allowed id is the same token in both tokenizers.

    Args:
        student, teacher: the tokenizers.
        allowed: what the student may produce.
        backend: whose teacher asks for it, for the message.

    Raises:
        InputError: listing the first ids that differ.
    """
    differing = differing_ids(student, teacher, allowed)
    if differing:
        shown = "; ".join(f"id {i}: student {a!r}, teacher {'nothing' if b is None else b!r}" for i, a, b in differing[:SHOWN])
        raise InputError(
            f"--teacher_model: its vocabulary differs from --student_model's at {len(differing)} of {len(_wanted(allowed))} ids ({shown}); "
            f"the {backend} teacher scores the student's ids directly, so both checkpoints must share one tokenizer"
        )


def differing_ids(
    student: TokenizerLike, teacher: TokenizerLike, allowed: AllowedTokens, *, width: int | None = None
) -> list[tuple[int, str | None, str | None]]:
    """Allowed ids that are not the same token in both tokenizers: (id, the student's token, the teacher's, None past its table).

    Args:
        student, teacher: the tokenizers.
        allowed: what the student may produce.
        width: scores that the teacher's head gives; an id at or past it is the teacher's no more. None: as many as its tokenizer has ids.
    """
    wanted, known = _wanted(allowed), len(teacher) if width is None else min(width, len(teacher))
    ours, theirs = student.convert_ids_to_tokens(wanted), teacher.convert_ids_to_tokens([min(i, len(teacher) - 1) for i in wanted])
    pairs = ((i, a, b if i < known else None) for i, a, b in zip(wanted, ours, theirs, strict=True))
    return [(i, a, b) for i, a, b in pairs if i >= known or a != b]


def _wanted(allowed: AllowedTokens) -> list[int]:
    return [i for start, stop in allowed.ranges for i in range(start, stop)] + list(allowed.stop_ids)


def check_direct_ids(student: TokenizerLike, teacher: TokenizerLike, allowed: AllowedTokens, *, rows: int, backend: str) -> None:
    """Raise unless the student's ids are the teacher's: the same tokens, made by the same merges, within the rows of the teacher's head.

    Args:
        student, teacher: the tokenizers.
        allowed: what the student may produce.
        rows: ids that the teacher's head has scores of.
        backend: whose teacher asks for it, for the message.

    Raises:
        InputError: naming what differs.
    """
    check_same_vocabulary(student, teacher, allowed, backend=backend)
    last = max([*(stop - 1 for _, stop in allowed.ranges), *allowed.stop_ids])
    if last >= rows:
        raise InputError(
            f"--teacher_model: its head has scores of ids up to {rows - 1}, and the student may produce id {last}; give another"
        )
    ours, theirs = _merges(student), _merges(teacher)
    if ours is not None and theirs is not None and ours != theirs:
        place = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), min(len(ours), len(theirs)))
        shown = [repr(merges[place]) if place < len(merges) else "none" for merges in (ours, theirs)]
        raise InputError(
            f"--teacher_model: its tokenizer cuts words otherwise than --student_model's: merge {place} is {shown[1]}, the student's "
            f"{shown[0]}; the {backend} teacher scores the student's ids directly, so both checkpoints must share one tokenizer"
        )


def _merges(tokenizer: TokenizerLike) -> list[tuple[str, str]] | None:
    """A byte-pair tokenizer's merges in order; None where the tokenizer has none or does not show them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    merges = json.loads(backend.to_str())["model"].get("merges")
    if merges is None:
        return None
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges)
    return [(left, right) for left, right in pairs]
