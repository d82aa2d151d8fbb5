"""Whether a teacher's ids are the student's."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from arkfast.records import AllowedTokens, InputError, Interface, TokenizerLike, Utterance

SHOWN = 5  # differing ids named in the error
FRAMES = 3000
"""Mel frames of the clip for which prompts are compared: 30 s."""


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
            f"--teacher_model: its tokenizer cuts words differently from --student_model's: merge {place} is {shown[1]}, the student's "
            f"{shown[0]}; the {backend} teacher scores the student's ids directly, so both checkpoints must share one tokenizer"
        )


def check_ends(
    student: Interface, teacher: TokenizerLike, ends: Collection[int], folder: Path, *, allowed: AllowedTokens, unused: Collection[int] = ()
) -> None:
    """Raise unless the teacher ends its answers as the student does.

    A teacher with an end of its own would teach the student never to stop, since the student cannot produce that end.

    Args:
        student: the student's.
        teacher: the teacher's tokenizer.
        ends: ids that end the teacher's answers by its files; empty: they name none.
        folder: the teacher's checkpoint.
        allowed: what the student may produce.
        unused: ids that the teacher's files may name besides, because a model of its kind does not end its answers with them.

    Raises:
        InputError: with both meanings.
    """
    if not ends or (student.end_id in ends and all(end in allowed.stop_ids or end in unused for end in ends)):
        return
    raise InputError(
        f"--teacher_model {folder}: it ends its answers with {_named(teacher, sorted(ends))}, the student with "
        f"{_named(student.tokenizer, allowed.stop_ids)}; an end that means something else to each would teach the student never to stop. "
        "Give a teacher that ends as the student does; where its files name an end that it does not use, leave only the true one in "
        "eos_token_id of its config.json and generation_config.json"
    )


def check_same_prompt(student: Interface, teacher: Interface, task: str, folder: Path) -> None:
    """Raise unless the teacher's prompt is the student's, id by id and token by token, and their special tokens have the same ids.

    Args:
        student, teacher: what each says of itself.
        task: what they do.
        folder: the teacher's checkpoint.

    Raises:
        InputError: naming the first ids that differ.
    """
    where, clip = f"--teacher_model {folder}", Utterance(id="check", audio=None, text="")
    ours, theirs = (side.prompt(task).ids(FRAMES, clip) for side in (student, teacher))
    if ours != theirs:
        place = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), min(len(ours), len(theirs)))
        shown = [_named(side.tokenizer, ids[place : place + 1]) for side, ids in ((student, ours), (teacher, theirs))]
        raise InputError(
            f"{where}: its prompt for 30 s of audio has {len(theirs)} ids and the student's {len(ours)}; position {place} is {shown[1]} in "
            f"its own and {shown[0]} in the student's. It would misread the student's prompt; give a teacher of the same prompt"
        )
    used = sorted({*ours, student.end_id})
    names = [side.tokenizer.convert_ids_to_tokens(used) for side in (student, teacher)]
    differing = [f"id {i}: student {a!r}, teacher {b!r}" for i, a, b in zip(used, *names, strict=True) if a != b]
    special = [{str(token): int(i) for i, token in side.tokenizer.added_tokens_decoder.items()} for side in (student, teacher)]
    differing += [f"{name!r}: student {i}, teacher {special[1][name]}" for name, i in special[0].items() if special[1].get(name, i) != i]
    if differing:
        raise InputError(
            f"{where}: tokens of the prompt or special tokens are not the student's, {len(differing)} of them "
            f"({'; '.join(differing[:SHOWN])}); give a teacher with the student's tokenizer"
        )


def _named(tokenizer: TokenizerLike, ids: Sequence[int]) -> str:
    """Ids with the tokens that they are."""
    known = [f"id {i} {tokenizer.convert_ids_to_tokens([i])[0]!r}" if i < len(tokenizer) else f"id {i}, which is no token" for i in ids]
    return " and ".join(known) or "nothing"


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
