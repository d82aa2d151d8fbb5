"""Whether a teacher's ids are the student's."""

from __future__ import annotations

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
    wanted = [i for start, stop in allowed.ranges for i in range(start, stop)] + list(allowed.stop_ids)
    ours, theirs = student.convert_ids_to_tokens(wanted), teacher.convert_ids_to_tokens([min(i, len(teacher) - 1) for i in wanted])
    differing = [(i, a, b) for i, a, b in zip(wanted, ours, theirs, strict=True) if i >= len(teacher) or a != b]
    if differing:
        shown = "; ".join(f"id {i}: student {a!r}, teacher {b if i < len(teacher) else 'nothing'!r}" for i, a, b in differing[:SHOWN])
        raise InputError(
            f"--teacher_model: its vocabulary differs from --student_model's at {len(differing)} of {len(wanted)} ids ({shown}); "
            f"the {backend} teacher scores the student's ids directly, so both checkpoints must share one tokenizer"
        )
