"""Records: keys, token ranges, packing."""

from types import SimpleNamespace

import pytest
import torch

from arkfast.records import AllowedTokens, Rollout, Utterance


def test_key_is_stable_and_non_negative():
    first = Utterance(id="clip-1", audio="a.wav")
    assert first.key == Utterance(id="clip-1", audio="b.wav").key == 8896316712558346466
    keys = {Utterance(id=f"clip-{i}", audio="a.wav").key for i in range(1000)}
    assert len(keys) == 1000
    assert all(0 <= key < 2**63 for key in keys)


def tokenizer(added: list[int], size: int):
    class Fake:
        def __init__(self):
            self.added_tokens_decoder = {i: f"<{i}>" for i in added}

        def __len__(self):
            return size

    return Fake()


def test_allowed_tokens_of_the_official_vocabularies():
    for vocab_size, added in ((163958, range(151643, 163958)), (151936, range(151643, 151670))):
        config = SimpleNamespace(eos_token_id=151645, vocab_size=vocab_size)
        allowed = AllowedTokens.asr(tokenizer(list(added), max(added) + 1), config)
        assert allowed.ranges == ((0, 151643),)
        assert allowed.stop_ids == (151645,)
        assert allowed.count == 151644
        assert 151645 in allowed
        assert 151643 not in allowed
        assert len(allowed.blocked(vocab_size)) == vocab_size - 151644
        assert allowed.width(vocab_size) == 151680
        assert allowed.mask(vocab_size)[151680:].sum() == 0


@pytest.mark.parametrize(("last", "stop", "width"), [(64, 3, 64), (64, 64, 100), (9, 500, 64)])
def test_the_leading_ids_that_are_scored_hold_every_allowed_one(last, stop, width):
    allowed = AllowedTokens(ranges=((0, last),), stop_ids=(stop,))
    assert allowed.width(100) == width
    assert not allowed.mask(100)[width:].any()


def test_allowed_tokens_with_added_tokens_in_between():
    allowed = AllowedTokens.asr(tokenizer([0, 3, 9], 10), SimpleNamespace(eos_token_id=[9, 3], vocab_size=12))
    assert allowed.ranges == ((1, 3), (4, 9))
    assert allowed.stop_ids == (3, 9)
    assert allowed.blocked(12).tolist() == [0, 10, 11]
    assert allowed.mask(12).sum() == allowed.count


def test_allowed_tokens_refuses_what_cannot_end_or_overlaps():
    with pytest.raises(ValueError, match="no sequence could end"):
        AllowedTokens(ranges=((0, 5),), stop_ids=())
    with pytest.raises(ValueError, match="ascending"):
        AllowedTokens(ranges=((0, 5), (4, 8)), stop_ids=(9,))


def test_allowed_tokens_that_differ_by_position():
    allowed = AllowedTokens(ranges=((0, 40), (50, 90)), stop_ids=(95, 96, 49), period=((0, 10), (10, 40), (60, 90)))
    turns = allowed.turns()
    assert turns.dtype == torch.int32
    assert turns.tolist() == [
        [[0, 10], [49, 50], [95, 97]],  # a turn's first position may end the answer
        [[10, 40], [0, 0], [0, 0]],
        [[60, 90], [0, 0], [0, 0]],
    ]
    assert allowed.row_ranges(torch.tensor([0, 7, 3, 2])).tolist() == turns[[0, 1, 0, 2]].tolist()
    assert allowed.count == 40 + 40 + 3
    assert 45 not in allowed
    plain = AllowedTokens(ranges=((0, 90),), stop_ids=(95,))
    assert plain.turns() is None
    assert plain.row_ranges(torch.tensor([0, 7])) is None


@pytest.mark.parametrize(
    ("period", "message"),
    [
        ((), "period must have at least one range, or be None"),
        (((4, 10), (5, 5)), r"period's range \[5, 5\) must be non-empty"),
        (((4, 10), (30, 60)), r"period's range \[30, 60\) must be non-empty and lie inside ranges"),
        (((4, 10), (80, 91)), r"period's range \[80, 91\) must be non-empty and lie inside ranges"),
        (((60, 70), (0, 10)), r"period's range \[0, 10\) must not hold the stop id 3"),
    ],
)
def test_allowed_tokens_refuses_a_period_that_contradicts_the_rest(period, message):
    with pytest.raises(ValueError, match=message):
        AllowedTokens(ranges=((0, 40), (50, 90)), stop_ids=(3, 95), period=period)


def test_a_period_may_cross_ranges_that_touch():
    assert AllowedTokens(ranges=((0, 40), (40, 90)), stop_ids=(95,), period=((30, 60),)).turns().tolist() == [[[30, 60], [95, 96]]]


def test_packed_index_runs_over_rows_then_positions():
    rollout = Rollout(tokens=torch.zeros(3, 4), lens=torch.tensor([2, 0, 3]), stopped=torch.ones(3), owner=torch.arange(3))
    row, position = rollout.packed_index()
    assert row.tolist() == [0, 0, 2, 2, 2]
    assert position.tolist() == [0, 1, 0, 1, 2]
