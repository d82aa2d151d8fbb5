"""Tokens of two vocabularies, matched by the bytes that they stand for; expected values are found by decoding, not by offsets."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hf_teachers import OTHER_TEXTS, byte_level
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from arkfast.distill.alignment import OPENING, PLAIN, VocabularyMap, align_bytes, align_direct, token_bytes
from arkfast.models.arkasr.new import build_tokenizer
from arkfast.records import AllowedTokens, InputError
from arkfast.testing import TEXTS

STUDENT = build_tokenizer(TEXTS * 8, vocab_size=400)
END = STUDENT.convert_tokens_to_ids("<|im_end|>")
ALLOWED = AllowedTokens(ranges=((0, min(STUDENT.added_tokens_decoder)),), stop_ids=(END,))
OTHER = byte_level(OTHER_TEXTS, merges=90, added=("<|endoftext|>", "<|x|>"), end="<|endoftext|>")
PIECES = st.sampled_from(["one", " two", " three", "é", "e\u0301", "東京", "😀", "Мир", " ", "  ", "\n", "nine", "<|x|>", ",", "5", "ü"])
WORDS = st.lists(PIECES, max_size=12).map("".join)


def mapped(teacher: Any, *, end: int, widths: tuple[int, int] | None = None) -> VocabularyMap:
    special = {int(i) for i in teacher.added_tokens_decoder}
    return VocabularyMap.of(
        token_bytes(STUDENT, where="student"), token_bytes(teacher, where="teacher"), allowed=ALLOWED, special=special, ends=(END, end),
        widths=widths or (len(STUDENT), len(teacher)),
    )  # fmt: skip


MAP = mapped(OTHER, end=OTHER.eos_token_id)


def own_bytes(ids: list[int]) -> bytes:
    return b"".join(MAP.student_bytes[i] or b"" for i in ids if i != END)


def check(tokens: list[int], stopped: bool, *, blank: bool = False) -> Any:
    """Align one row and compare every position with what decoding says."""
    found = align_bytes([tokens], [stopped], MAP, OTHER, leading_blank=blank)
    (fed,) = found.fed
    read = [b"".join(MAP.teacher_bytes[i] or b"" for i in fed[:j]) for j in range(len(fed) + 1)]
    lead = blank and bool(read[-1]) and not own_bytes(tokens).startswith(b" ")
    for t in range(len(tokens)):
        produced = own_bytes(tokens[:t])
        wanted = [j for j, text in enumerate(read) if text == (b" " if lead else b"") + produced]
        if wanted:
            assert found.place[t] == wanted[-1]
            assert found.kind[t] == PLAIN or not fed
        elif t == 0 and lead:
            assert (found.place[t], found.kind[t]) == (0, OPENING)
        else:
            assert found.place[t] == -1
    return found


@given(st.lists(st.tuples(WORDS, st.booleans()), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_equal_vocabularies_give_the_direct_result(rows):
    tokens = [STUDENT.encode(text, add_special_tokens=False) + [END] * ended for text, ended in rows]
    allowed = [[i for i in row if i in ALLOWED] for row in tokens]
    same = mapped(STUDENT, end=END)
    found = align_bytes(allowed, [ended for _, ended in rows], same, STUDENT, leading_blank=False)
    direct = align_direct(allowed)
    # What was written without its special tokens may be one token after all where two pieces meet; texts without them are canonical.
    canonical = [STUDENT.encode(own_bytes(row).decode(), add_special_tokens=False) == [i for i in row if i != END] for row in allowed]
    starts = np.cumsum([0, *map(len, allowed)])
    for r, whole in enumerate(canonical):
        if whole:
            span = slice(starts[r], starts[r + 1])
            np.testing.assert_array_equal(found.place[span], direct.place[span])
            assert not found.kind[span].any()
            assert found.fed[r][: len(direct.fed[r])] == direct.fed[r]
    wanted = [i for start, stop in ALLOWED.ranges for i in range(start, stop)] + [END]
    assert same.teacher_ids[PLAIN, wanted].tolist() == wanted


@given(WORDS, st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_two_vocabularies_meet_where_both_have_read_the_same_bytes(text, stopped, blank):
    tokens = [i for i in STUDENT.encode(text, add_special_tokens=False) if i in ALLOWED and i != END]
    found = check(tokens + [END] * stopped, stopped, blank=blank)
    if stopped and STUDENT.backend_tokenizer.normalizer.normalize_str(text) == text:
        assert found.place[-1] == len(found.fed[0]), "the end is compared after everything was read"


@given(st.lists(st.integers(0, ALLOWED.ranges[0][1] - 1), max_size=8), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_ids_at_all_even_broken_characters(tokens, stopped):
    found = check(tokens + [END] * stopped, stopped)
    assert len(found.place) == len(tokens) + stopped
    try:
        own_bytes(tokens).decode()
    except UnicodeDecodeError:
        assert not stopped or found.place[-1] == -1, "what follows a broken character is not compared"


def test_a_row_that_was_cut_within_a_character():
    tokens = STUDENT.encode("one 東", add_special_tokens=False)
    singles = [next(i for i, b in enumerate(MAP.student_bytes) if b == bytes([byte]) and i in ALLOWED) for byte in "東".encode()]
    whole = STUDENT.encode("one ", add_special_tokens=False)
    assert own_bytes(whole + singles) == own_bytes(tokens)
    found = check(whole + singles[:2], False)
    assert OTHER.decode(found.fed[0]) == "one "
    assert found.place[len(whole)] == len(found.fed[0]), "before the broken character both stand after the blank"
    assert found.place[len(whole) + 1] == -1


def test_empty_transcripts():
    for blank in (False, True):
        found = align_bytes([[END], []], [True, False], MAP, OTHER, leading_blank=blank)
        assert found.fed == [[], []]
        assert found.place.tolist() == [0]
        assert found.kind.tolist() == [OPENING if blank else PLAIN]
    none = align_bytes([], [], MAP, OTHER, leading_blank=False)
    assert (none.fed, len(none.place)) == ([], 0)


def test_ids_mean_their_bytes_and_ends_mean_each_other():
    ids, special = MAP.teacher_ids, {int(i) for i in OTHER.added_tokens_decoder}
    assert ids[:, END].tolist() == [OTHER.eos_token_id] * 2
    pairs = [(i, j) for i, j in enumerate(ids[PLAIN].tolist()) if j >= 0 and i != END]
    assert len(pairs) >= 256
    assert all(MAP.student_bytes[i] == MAP.teacher_bytes[j] and j not in special for i, j in pairs)
    assert len({j for _, j in pairs}) == len(pairs)
    openings = [(i, j) for i, j in enumerate(ids[OPENING].tolist()) if j >= 0 and i != END]
    assert openings
    assert all(b" " + MAP.student_bytes[i] == MAP.teacher_bytes[j] for i, j in openings)
    both = {b for i, b in enumerate(MAP.student_bytes) if i in ALLOWED} & {b for j, b in enumerate(MAP.teacher_bytes) if j not in special}
    assert {MAP.student_bytes[i] for i, _ in pairs} == both


def test_ids_past_a_table_are_not_mapped():
    small = mapped(OTHER, end=3, widths=(300, 200))
    assert small.teacher_ids.shape == (2, 300)
    assert int(small.teacher_ids.max()) < 200
    unlimited = MAP.teacher_ids[:, :300]
    kept = small.teacher_ids >= 0
    assert torch.equal(small.teacher_ids[kept], unlimited[kept])
    assert torch.equal(kept, (unlimited >= 0) & (unlimited < 200))


def sentencepiece() -> Any:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "</s>", *[f"<0x{i:02X}>" for i in range(256)]]
    tokenizer.train_from_iterator(OTHER_TEXTS * 8, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False))
    fields = json.loads(tokenizer.to_str())
    fields["added_tokens"] = fields["added_tokens"][:2]  # the bytes' pieces are ordinary ones
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(fields)), eos_token="</s>", unk_token="<unk>")


def test_a_sentencepiece_vocabulary():
    teacher = sentencepiece()
    spelled = token_bytes(teacher, where="teacher")
    assert spelled[teacher.convert_tokens_to_ids("<0x01>")] == b"\x01"
    assert spelled[teacher.convert_tokens_to_ids("<0x6E>")] is None, "n has a piece of its own"
    assert b" one" in spelled
    vocabulary = mapped(teacher, end=teacher.eos_token_id)
    tokens = [*STUDENT.encode("one two 東 é", add_special_tokens=False), END]
    found = align_bytes([tokens], [True], vocabulary, teacher, leading_blank=False)
    assert b"".join(spelled[i] for i in found.fed[0]) == " one two 東 é".encode()
    assert (found.place[0], found.kind[0]) == (0, OPENING)
    assert found.place[-1] == len(found.fed[0])
    for t in range(1, len(tokens)):
        if found.place[t] >= 0:
            assert b"".join(spelled[i] for i in found.fed[0][: found.place[t]]) == b" " + own_bytes(tokens[:t])


def test_a_vocabulary_that_is_neither():
    words = Tokenizer(models.WordLevel({"one": 0, "two": 1, "<unk>": 2}, unk_token="<unk>"))
    with pytest.raises(InputError, match=r"the teacher: its tokens cannot be read as bytes \(decoder unknown\)"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=words), where="the teacher")
