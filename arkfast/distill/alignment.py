"""Where a student's tokens meet those of a teacher with another vocabulary, and which ids mean the same there.

Everything is told in bytes, ids and offsets. Shape letters: Vs and Vt ids of the student and of the teacher, R rollouts, N
produced tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.convert_slow_tokenizer import bytes_to_unicode

from arkfast.records import AllowedTokens, InputError, JsonObject

PLAIN, OPENING = 0, 1
"""Kinds of positions, the rows of ``VocabularyMap.teacher_ids``."""
BLANK = "\u2581"  # what SentencePiece writes for a blank


def token_bytes(tokenizer: Any, *, where: str) -> list[bytes | None]:
    """The bytes that each id of a Transformers tokenizer stands for; None for ids that stand for nothing.

    Byte-level vocabularies (GPT-2, Qwen, Whisper, Llama 3) and SentencePiece vocabularies (``▁`` for a blank, ``<0x0A>`` for a byte) are
    read. An added token stands for its own name.

    Args:
        tokenizer: with a backend of the tokenizers library.
        where: what an error calls it.

    Raises:
        InputError: the vocabulary is of another kind.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    kinds = set() if backend is None or backend.decoder is None else _kinds(json.loads(backend.decoder.__getstate__()))
    added = {int(i): str(token) for i, token in tokenizer.added_tokens_decoder.items()}
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    if "ByteLevel" in kinds:
        byte_of = {symbol: byte for byte, symbol in bytes_to_unicode().items()}
        spelled = [None if name is None or not set(name) <= byte_of.keys() else bytes(byte_of[c] for c in name) for name in names]
    elif kinds & {"ByteFallback", "Metaspace"}:
        whole = [None if name is None or _single_byte(name) else name.replace(BLANK, " ").encode() for name in names]
        taken = {piece for piece in whole if piece}
        # A byte's own piece is never written where a character's has the same bytes, so it stands for nothing there.
        bytes_alone = [None if name is None or (byte := _single_byte(name)) in taken else byte for name in names]
        spelled = [byte if piece is None else piece for piece, byte in zip(whole, bytes_alone, strict=True)]
    else:
        raise InputError(
            f"{where}: its tokens cannot be read as bytes (decoder {', '.join(sorted(kinds)) or 'unknown'}), so they cannot be "
            "aligned with another vocabulary; give a teacher with a byte-level or SentencePiece tokenizer"
        )
    for i, name in added.items():
        if i < len(spelled):
            spelled[i] = name.encode()
    return spelled


def _kinds(decoder: JsonObject) -> set[str]:
    return {str(decoder["type"])}.union(*(_kinds(part) for part in decoder.get("decoders", ())))


def _single_byte(name: str) -> bytes | None:
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:5], 16)])
    return None


@dataclass(frozen=True, kw_only=True)
class VocabularyMap:
    """Which of the teacher's ids stands for each of the student's, and what that may mean.

    A teacher's id means its byte string and nothing else: it stands for the student's id with the same bytes, where each vocabulary has
    exactly one such id. Added and special tokens stand for nothing, whatever their names are, but for one pair: the student's end token and
    the teacher's. Ids that only one vocabulary has are on no list, and their mass is not seen.

    At the opening of an answer the teacher may want a blank that the student does not write (Whisper's texts begin with one, SentencePiece
    puts one before the first word). There the teacher's ``" one"`` stands for the student's ``"one"``, and an id without a leading blank
    stands for nothing.
    """

    teacher_ids: torch.Tensor
    """[2, Vs] int64: the teacher's id of each of the student's ids at ``PLAIN`` and at ``OPENING`` positions; −1 for none."""
    student_bytes: list[bytes | None]
    """Of each of the student's ids."""
    teacher_bytes: list[bytes | None]
    """Of each of the teacher's ids."""

    @classmethod
    def of(
        cls, student: list[bytes | None], teacher: list[bytes | None], *, allowed: AllowedTokens, special: set[int], ends: tuple[int, int],
        widths: tuple[int, int],
    ) -> VocabularyMap:  # fmt: skip
        """The map of two vocabularies.

        Args:
            student, teacher: their ids' bytes, from ``token_bytes``.
            allowed: what the student may produce; nothing else is mapped.
            special: the teacher's added tokens.
            ends: the student's and the teacher's end token.
            widths: how many scores the student's and the teacher's heads give; an id at or past them is not mapped.
        """
        texts = {i: b for i, b in enumerate(teacher[: widths[1]]) if b and i not in special}
        plain = _unique(texts)
        opening = _unique({i: b[1:] for i, b in texts.items() if b[:1] == b" " and len(b) > 1})
        wanted = {i: b for start, stop in allowed.ranges for i in range(start, min(stop, widths[0], len(student))) if (b := student[i])}
        found = np.full((2, widths[0]), -1, dtype=np.int64)
        for value, own in _unique(wanted).items():
            found[PLAIN, own], found[OPENING, own] = plain.get(value, -1), opening.get(value, -1)
        if ends[0] < widths[0] and ends[1] < widths[1]:
            found[:, ends[0]] = ends[1]
        return cls(teacher_ids=torch.from_numpy(found), student_bytes=student, teacher_bytes=teacher)


def _unique(texts: dict[int, bytes]) -> dict[bytes, int]:
    """The id of each byte string that exactly one id has."""
    count = Counter(texts.values())
    return {text: i for i, text in texts.items() if count[text] == 1}


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """A batch's rollouts as the teacher reads them."""

    fed: list[list[int]]
    """R lists of the teacher's ids that follow each row's prompt."""
    place: np.ndarray
    """[N] int64: how many of the row's ``fed`` ids the teacher has read where it predicts the student's token; −1: never.
    """
    kind: np.ndarray
    """[N] int64: the row of ``VocabularyMap.teacher_ids`` that holds there."""


def align_direct(tokens: Sequence[Sequence[int]]) -> Aligned:
    """The alignment of equal vocabularies: R lists of produced ids, each position meets itself."""
    place = np.concatenate([np.arange(len(row), dtype=np.int64) for row in tokens] or [np.zeros(0, dtype=np.int64)])
    return Aligned(fed=[list(row[:-1]) for row in tokens], place=place, kind=np.zeros_like(place))


def align_bytes(
    tokens: Sequence[Sequence[int]], stopped: Sequence[bool], vocabulary: VocabularyMap, tokenizer: Any, *, leading_blank: bool
) -> Aligned:
    """The alignment by byte offsets: the teacher stands where it has read exactly the bytes that the student had produced.

    The student's ids give the transcript's bytes. What is valid UTF-8 from the beginning is tokenised anew by the teacher's tokenizer, in
    one call for all rows; what follows the first byte that belongs to no character (a row that the length limit cut within one) is not
    read. A teacher's tokenizer that rewrites the text (composed accents) is followed up to the first byte that differs. Where a boundary of
    both tokenisations lies at the same offset, the position is compared. Python runs over rows and token lists once a step, never over the
    vocabulary.

    Args:
        tokens: R lists of produced ids, the end token included.
        stopped: whether each row ends with an end token.
        vocabulary: the map of both vocabularies.
        tokenizer: the teacher's.
        leading_blank: the teacher's texts begin with a blank, which is put before a transcript that has none.
    """
    written = [[vocabulary.student_bytes[i] or b"" for i in row[: len(row) - ended]] for row, ended in zip(tokens, stopped, strict=True)]
    texts = [_readable(b"".join(row)) for row in written]
    asked = [" " + text if leading_blank and text and not text.startswith(" ") else text for text in texts]
    fed = tokenizer(asked, add_special_tokens=False, split_special_tokens=True)["input_ids"] if asked else []
    placed = [
        _meet(row, text.encode(), [vocabulary.teacher_bytes[i] or b"" for i in ids], ended=ended, leading_blank=leading_blank)
        for row, text, ids, ended in zip(written, texts, fed, stopped, strict=True)
    ]
    none = np.zeros(0, dtype=np.int64)
    return Aligned(
        fed=[list(map(int, ids)) for ids in fed],
        place=np.concatenate([place for place, _ in placed] or [none]),
        kind=np.concatenate([kind for _, kind in placed] or [none]),
    )


def _readable(written: bytes) -> str:
    """The text up to the first byte that belongs to no character."""
    try:
        return written.decode()
    except UnicodeDecodeError as error:
        return written[: error.start].decode()


def _meet(own: list[bytes], text: bytes, theirs: list[bytes], *, ended: bool, leading_blank: bool) -> tuple[np.ndarray, np.ndarray]:
    """Of one row: (place, kind) of each of its tokens, as in ``Aligned``."""
    starts = np.cumsum([0, *map(len, own)])[: len(own) + ended]
    read = b"".join(theirs)
    blank = int(read.startswith(b" ") and not text.startswith(b" ")) if theirs else int(leading_blank)
    read = read[blank:] if theirs else read
    agreed = len(text)
    if read != text:
        agreed = next((i for i, (a, b) in enumerate(zip(text, read, strict=False)) if a != b), min(len(text), len(read)))
    offsets = np.cumsum([0, *map(len, theirs)]) - blank
    offsets[0] = 0  # nothing is read yet: the student's beginning, too
    found = np.searchsorted(offsets, starts, side="right") - 1
    met = (offsets[found] == starts) & (starts <= agreed)
    place = np.where(met, found, -1).astype(np.int64)
    kind = np.where((place == 0) & bool(blank), OPENING, PLAIN).astype(np.int64)
    return place, kind
